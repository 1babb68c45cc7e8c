"""`kad serve --dry-run`: which command line vLLM gets. The server itself is tested in test_server.py."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kad.references import resolve_model, resolve_pair


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kad = Path(sys.executable).parent / "kad"
    return subprocess.run(
        [str(kad), "serve", *arguments], capture_output=True, text=True, check=False, env={"PATH": "", **environment}
    )


def planned(*arguments: str) -> list[str]:
    done = run(*arguments, "--dry-run")
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout)


def speculation(command: list[str]) -> Any:
    return json.loads(command[command.index("--speculative-config") + 1])


def test_the_aligned_model_drafts_unless_told_otherwise() -> None:
    command = planned("tiny", "--port", "8111", "-tp", "2", "--draft-tokens", "7")
    assert command[1:5] == ["-m", "kad.vllm.launch", "serve", resolve_pair("tiny")]
    assert command[command.index("--served-model-name") + 1] == "tiny"
    assert command[-4:] == ["--port", "8111", "-tp", "2"]
    assert speculation(command) == {
        "method": "draft_model",
        "model": resolve_model("tiny:small-aligned"),
        "num_speculative_tokens": 7,
        "draft_sample_method": "probabilistic",
        "draft_tensor_parallel_size": 2,
    }


def test_what_the_user_says_stands() -> None:
    assert "--speculative-config" not in planned("tiny", "--no-speculate")
    own = planned("tiny", '--speculative-config={"method": "ngram"}', "--served-model-name=mine")
    assert own[5:] == ['--speculative-config={"method": "ngram"}', "--served-model-name=mine"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", "--no-speculate", "--draft-tokens", "3", "--dry-run"], "--no-speculate contradicts --draft-tokens"),
        (["tiny", "--speculative-config", "{}", "--draft-tokens", "3", "--dry-run"], "drop that"),
        (["./nowhere", "--dry-run"], "No pair at ./nowhere"),
        (["tiny", "--draft-tokens", "0", "--dry-run"], "greater than or equal to 1"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_plugin_list_without_ours_is_refused() -> None:
    done = run("tiny", VLLM_PLUGINS="other")
    assert done.returncode == 2
    assert "VLLM_PLUGINS=other keeps kad's plugin out of vLLM" in done.stderr


def test_models_with_different_tokens_are_refused(random_pair: Path) -> None:
    config = json.loads((random_pair / "config.json").read_text())
    mixed = random_pair.parent / "mixed-tokens"
    mixed.mkdir()
    (mixed / "config.json").write_text(json.dumps(config | {"aligned": {"model": resolve_model("tiny:small-aligned")}}))
    done = run(str(mixed), "--dry-run")
    assert done.returncode == 2
    assert "different vocabularies" in done.stderr

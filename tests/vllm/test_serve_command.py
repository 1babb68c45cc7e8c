"""`kad serve --dry-run`: which command line vLLM gets. The server itself is tested in test_server.py."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import which
from typing import Any, NamedTuple

import pytest
from vllm.entrypoints.cli.serve import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from kad.cli.main import app
from kad.pair.sources import resolve_model, resolve_pair

DEPLOY = Path(__file__).parents[2] / "deploy"


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Call the command line in this process; a Transformers start per case would take most of the time."""

    def call(*arguments: str) -> Done:
        with pytest.raises(SystemExit) as left:
            app(["serve", *arguments])
        printed = capsys.readouterr()
        return Done(int(left.value.code or 0), printed.out, printed.err)

    return call


def planned(run: Callable[..., Done], *arguments: str) -> list[str]:
    done = run(*arguments, "--dry-run")
    assert done.code == 0, done.err
    return shlex.split(done.out)


def speculation(command: list[str]) -> Any:
    return json.loads(command[command.index("--speculative-config") + 1])


def test_the_aligned_model_drafts_unless_told_otherwise(run: Any) -> None:
    command = planned(run, "tiny", "--port", "8111", "-tp", "2", "--draft-tokens", "7")
    assert command[1:5] == ["-m", "kad.engines.vllm.launch", "serve", resolve_pair("tiny")]
    assert command[command.index("--served-model-name") + 1] == "tiny"
    assert command[-4:] == ["--port", "8111", "-tp", "2"]
    assert speculation(command) == {
        "method": "draft_model",
        "model": resolve_model("tiny:small-aligned"),
        "num_speculative_tokens": 7,
        "draft_sample_method": "probabilistic",
        "draft_tensor_parallel_size": 2,
    }


def test_repeatable_drafts_are_greedy(run: Any) -> None:
    assert speculation(planned(run, "tiny", "--repeatable"))["draft_sample_method"] == "greedy"


def test_what_the_user_says_stands(run: Any) -> None:
    assert "--speculative-config" not in planned(run, "tiny", "--no-speculate")
    own = planned(run, "tiny", '--speculative-config={"method": "ngram"}', "--served-model-name=mine")
    assert own[5:] == ["--host", "127.0.0.1", '--speculative-config={"method": "ngram"}', "--served-model-name=mine"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", "--no-speculate", "--draft-tokens", "3", "--dry-run"], "--no-speculate contradicts --draft-tokens"),
        (["tiny", "--speculative-config", "{}", "--draft-tokens", "3", "--dry-run"], "drop that"),
        (["tiny", "--speculative-config", "{}", "--repeatable", "--dry-run"], '"draft_sample_method": "greedy"'),
        (["./nowhere", "--dry-run"], "No pair at ./nowhere"),
        (["tiny", "--draft-tokens", "0", "--dry-run"], "--draft-tokens must be in [1, 128], but is 0"),
    ],
)
def test_mistakes(run: Any, arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_plugin_list_without_ours_is_refused(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    done = run("tiny")
    assert done.code == 2
    assert "VLLM_PLUGINS=other keeps kad's plugin out of vLLM" in done.err


def test_models_with_different_tokens_are_refused(run: Any, random_pair: Path) -> None:
    config = json.loads((random_pair / "config.json").read_text())
    mixed = random_pair.parent / "mixed-tokens"
    mixed.mkdir()
    (mixed / "config.json").write_text(json.dumps(config | {"aligned": {"model": resolve_model("tiny:small-aligned")}}))
    done = run(str(mixed), "--dry-run")
    assert done.code == 2
    assert "different vocabularies" in done.err


@pytest.mark.parametrize("file", ["kad-serve.service", "Containerfile"])
def test_the_files_for_operators_start_what_there_is(run: Any, file: str) -> None:
    text = (DEPLOY / file).read_text(encoding="utf-8")
    if file == "Containerfile":
        words = json.loads(text.split("ENTRYPOINT ")[1].splitlines()[0])
    else:
        words = text.split("ExecStart=")[1].splitlines()[0].replace(" $KAD_OPTIONS", "").split()
    assert words[0].endswith("kad")
    assert words[1] == "serve"
    command = planned(run, "tiny", *words[3:])
    parser = make_arg_parser(FlexibleArgumentParser())
    assert parser.parse_args(command[4:]).shutdown_timeout == 60


@pytest.mark.skipif(which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "kad-serve.service").read_text(encoding="utf-8")
    unit = tmp_path / "kad-serve.service"
    unit.write_text(text.replace("/opt/kad/bin/kad", sys.executable), encoding="utf-8")  # It must exist.
    checked = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")

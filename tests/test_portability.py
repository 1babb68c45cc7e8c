"""Other systems, as far as they can be tried here: consoles and pipes without UTF-8, and Python without POSIX."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from kad.cli.main import main

QUESTION = "Tom has 3 apples \u2192 he buys 4. Wie viele \u00c4pfel hat er? \u4e2d"
Kad = Callable[..., tuple[int, str, str]]


@pytest.fixture
def kad(monkeypatch: pytest.MonkeyPatch) -> Kad:
    """kad(encoding, *arguments): exit code, standard output and error on a console of this encoding."""

    def run(encoding: str, *arguments: str) -> tuple[int, str, str]:
        # As Python opens them.
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
        err = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
        with monkeypatch.context() as patch:
            patch.setenv("COLUMNS", "100")
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            patch.setattr(sys, "argv", ["kad", *arguments])
            with pytest.raises(SystemExit) as ended:
                main()
        out.flush()
        err.flush()
        # Click writes UTF-8 to an ASCII standard error.
        texts = out.buffer.getvalue().decode(encoding), err.buffer.getvalue().decode(encoding, "replace")
        return ended.value.code, *texts

    return run


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["rules"], 0),
        (["--help"], 0),
        (["generate", "--help"], 0),
        (["trace", QUESTION, "--pair", "tiny", "--max-new-tokens", "8"], 0),
        (["generate", "hello", "--rule", "dual:threshold=\u221e"], 2),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else str(value),
)
def test_a_console_without_utf8_gets_text_it_can_show(kad: Kad, encoding: str, arguments: list[str], code: int) -> None:
    done, out, err = kad(encoding, *arguments)
    assert done == code, err
    assert "Traceback" not in err
    assert (out == "") == (code != 0)


def test_signs_are_spelled_out_and_other_characters_are_numbered(kad: Kad) -> None:
    assert "p >= threshold" in kad("ascii", "rules")[1]
    assert "\\u4e2d" in kad("cp1252", "generate", "hello", "--pair", "\u4e2d")[2]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8"])
def test_json_is_json_in_every_encoding(kad: Kad, encoding: str) -> None:
    _, out, _ = kad(encoding, "generate", QUESTION, "--pair", "tiny", "--max-new-tokens", "8", "--json")
    assert json.loads(out)["prompt_tokens"] > 0


def test_a_process_whose_console_is_not_utf8() -> None:
    command = [sys.executable, "-m", "kad", "rules", "dual"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert ">=" in done.stdout.decode("ascii")


# Every module but vLLM's, which runs on Linux only. What the others import may use POSIX where there is POSIX.
WITHOUT_POSIX = """
import pkgutil, sys
import torch, transformers, transformers.generation.utils, transformers.quantizers, lm_eval.tasks
import lm_eval.models.huggingface, matplotlib.pyplot
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationMixin, PreTrainedModel
import typer, rich.console, filelock, importlib.metadata, subprocess, platform, uuid, shlex, webbrowser, http.server
for name in ("fcntl", "termios", "resource", "readline", "pwd", "grp", "pty", "tty", "syslog"):
    sys.modules[name] = None
import os, signal
for name in ("pread", "fork", "uname", "getuid", "O_NONBLOCK"):
    delattr(os, name)
for name in ("SIGKILL", "SIGPIPE", "SIGHUP", "SIGALRM"):
    delattr(signal, name)
import kad
seen = 0
for module in pkgutil.walk_packages(kad.__path__, "kad."):
    if not module.name.startswith(("kad.vllm", "kad.engines.vllm.plugin", "kad.__main__")):
        __import__(module.name)
        seen += 1
print(seen)
"""


def test_nothing_but_vllm_needs_posix() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_POSIX], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 60

"""Other systems, as far as they can be tried here: consoles and pipes without UTF-8, and Python without POSIX."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

QUESTION = "Tom has 3 apples \u2192 he buys 4. Wie viele \u00c4pfel hat er? \u4e2d"


def kad(encoding: str, *arguments: str) -> Any:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "100"}
    command = [sys.executable, "-m", "kad", *arguments]
    return subprocess.run(command, capture_output=True, env=environment, check=False)


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
def test_a_console_without_utf8_gets_text_it_can_show(encoding: str, arguments: list[str], code: int) -> None:
    done = kad(encoding, *arguments)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
    assert (done.stdout.decode(encoding) == "") == (code != 0)


def test_signs_are_spelled_out_and_other_characters_are_numbered() -> None:
    rules = kad("ascii", "rules").stdout.decode("ascii")
    assert "p >= threshold" in rules
    error = kad("cp1252", "generate", "hello", "--pair", "\u4e2d").stderr.decode("cp1252")
    assert "\\u4e2d" in error


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8"])
def test_json_is_json_in_every_encoding(encoding: str) -> None:
    done = kad(encoding, "generate", QUESTION, "--pair", "tiny", "--max-new-tokens", "8", "--json")
    assert json.loads(done.stdout.decode(encoding))["prompt_tokens"] > 0


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
    if not module.name.startswith(("kad.vllm", "kad.__main__")):
        __import__(module.name)
        seen += 1
print(seen)
"""


def test_nothing_but_vllm_needs_posix() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_POSIX], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 60

"""`kad serve` as a user starts it: kad's own server, and the command line that goes to vLLM."""

from __future__ import annotations

import re
import shlex
import signal
import socket
import subprocess
import sys
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from typer.testing import CliRunner

from kad.cli import stdio
from kad.cli.main import app
from kad.engines.vllm.teacher import Server, problem, started
from kad.pair.sources import resolve_pair
from kad.server.listening import Listening


def serve(*arguments: Any, code: int) -> Any:
    result = CliRunner().invoke(app, ["serve", *map(str, arguments)])
    assert result.exit_code == code, f"{result.stderr}\n{result.exception!r}"
    return result


HERE = ("tiny", "--engine", "transformers")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tiny", "--engine", "ollama"), "Unknown --engine 'ollama'. Choose from: auto, vllm, transformers,"),
        ((*HERE, "--tensor-parallel-size", "2"), "Unknown option --tensor-parallel-size. Only vLLM takes options"),
        ((*HERE, "--dry-run"), "--dry-run shows vLLM's command line. Give --engine vllm with it."),
        ((*HERE, "--port", "70000"), "--port must be in [0, 65535], but is 70000."),
        ((*HERE, "--host", "no.such.name.invalid"), "Cannot listen at no.such.name.invalid port 8000:"),
        ((*HERE, "--draft-tokens", "100"), "--draft-tokens must be a number from 0 to 64 or auto, but is 100."),
        (("--engine", "transformers", "--base", "tiny:big-base"), "--base needs --aligned beside it"),
        (("tiny", "--engine", "vllm", "--rule", "dual", "--cors", "*"), "vLLM's server does not take --cors, --rule."),
        (
            (*HERE, "--teacher"),
            "--teacher needs vLLM's server, as trainers ask for the log-probabilities of many texts",
        ),
        (("--engine", "vllm"), "vLLM serves a pair: give a folder written by kad pack, a hub id, or tiny."),
    ],
)
def test_wrong_options(arguments: tuple[str, ...], message: str) -> None:
    pytest.importorskip("fastapi", reason='pip install "kad-align[server]"')
    result = serve(*arguments, code=2)
    assert message in result.stderr
    assert result.stdout == ""


def test_a_port_that_is_taken() -> None:
    pytest.importorskip("fastapi", reason='pip install "kad-align[server]"')
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert (
            f"Cannot listen at 127.0.0.1 port {port}: Address already in use"
            in serve(*HERE, "--port", port, code=2).stderr
        )


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kad.server.listening.find_spec", lambda package: None)
    text = 'fastapi is not installed. Install it with: pip install "kad-align[server]"'
    assert text in serve(*HERE, code=2).stderr


def test_what_goes_to_vllm() -> None:
    line = serve(
        "tiny", "--engine", "vllm", "--dry-run", "--host", "127.0.0.1", "--port", "81", "--api-key", "k",
        "--max-model-len", "512", "--no-speculate", code=0,
    ).stdout  # fmt: skip
    words = shlex.split(line)
    assert words[1:4] == ["-m", "kad.engines.vllm.launch", "serve"]
    assert words[5:] == [
        "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", "81", "--max-model-len", "512",
    ]  # fmt: skip


def test_a_teacher_is_served_as_trainers_need_it() -> None:
    words = shlex.split(
        serve("tiny", "--engine", "vllm", "--dry-run", "--teacher", "--max-model-len", "512", code=0).stdout
    )
    assert words[1:5] == ["-m", "kad.engines.vllm.launch", "--teacher", "serve"]
    assert words[6:] == [
        "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", "8000", "--logprobs-mode", "processed_logprobs",
        "--max-logprobs", "-1", "--generation-config", "vllm", "--max-model-len", "512",
    ]  # fmt: skip
    own = ("--generation-config", "auto", "--max_logprobs=-1", "--host", "0.0.0.0", "--port", "81")
    words = shlex.split(serve("tiny", "--engine", "vllm", "--dry-run", "--teacher", *own, code=0).stdout)
    assert words.count("--generation-config") == 1
    assert "--max-logprobs" not in words
    server, config = started(words[4:])
    assert server.address == "http://127.0.0.1:81"
    assert str(config.parsed_rule) == "dual:threshold=0.4"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"{}", "it answers in another form than vLLM"),
        (b'{"data": [{"id": "x"}], "tokens": [1, 2], "choices": [{}]}', "it answers in another form than vLLM"),
        (b"<html>", "/v1/models was not answered"),
    ],
)
def test_what_is_no_server_of_vllm_is_no_teacher(answer: bytes, message: str) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

    with HTTPServer(("127.0.0.1", 0), Other) as other:
        Thread(target=other.serve_forever, daemon=True).start()
        _, config = started(["serve", resolve_pair("tiny"), "--host", "127.0.0.1", "--port", "0"])
        said = problem(Server(f"http://127.0.0.1:{other.server_port}"), config)
        other.shutdown()
    assert said is not None
    assert said.startswith("This server is no teacher: ")
    assert message in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--draft-tokens", "3"), "--teacher reads texts and drafts none: drop --draft-tokens"),
        (("--repeatable",), "--teacher reads texts and drafts none: drop --draft-tokens"),
        (("--speculative_config={}",), "--teacher reads texts and drafts none: drop --draft-tokens"),
        (
            ("--max-logprobs", "5"),
            "--teacher serves with --max-logprobs -1, but --max-logprobs is 5. Drop one of them.",
        ),
        (
            ("--logprobs_mode=raw_logits",),
            "--teacher serves with --logprobs-mode processed_logprobs, but --logprobs-mode",
        ),
        (("--port", "0"), "--teacher asks its server over HTTP, at a port that is known. Drop --port 0."),
        (("--uds=/tmp/x",), "--teacher asks its server over HTTP, at a port that is known. Drop --uds."),
        (("--headless",), "--teacher asks its server over HTTP, at a port that is known. Drop --headless."),
    ],
)
def test_what_contradicts_a_teacher_is_refused(arguments: tuple[str, ...], message: str) -> None:
    assert message in serve("tiny", "--engine", "vllm", "--dry-run", "--teacher", *arguments, code=2).stderr


# Every option of listening: what kad's own server does with it, and what vLLM's gets.
OPEN = "Everybody who reaches this machine can use it"
LISTENING: dict[str, list[tuple[list[str], dict[str, str], str]]] = {
    "host": [
        ([], {}, "--host 127.0.0.1"),
        (["--host", "127.0.0.2"], {}, "--host 127.0.0.2"),
        (["--host", "0.0.0.0"], {}, OPEN),
    ],
    "port": [(["--port", "8123"], {}, "--port 8123")],
    "api_key": [
        (["--host", "0.0.0.0", "--api-key", "own"], {}, "VLLM_API_KEY=own"),
        (["--host", "0.0.0.0"], {"KAD_API_KEY": "own"}, "VLLM_API_KEY=own"),
        (["--host", "0.0.0.0"], {"KAD_API_KEY": "own", "VLLM_API_KEY": "other"}, "VLLM_API_KEY=own"),
        (["--host", "0.0.0.0"], {"VLLM_API_KEY": "own"}, "VLLM_API_KEY=own"),
    ],
    "cors": [(["--cors", "http://localhost:3000"], {}, "vLLM's server does not take --cors.")],
    "max_requests": [(["--max-requests", "3"], {}, "vLLM's server does not take --max-requests.")],
}


@pytest.mark.parametrize("option", [field.name for field in fields(Listening)])
def test_every_option_of_listening_holds_on_vllms_server_or_is_refused(
    option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One option, two servers; the key is nowhere on a command line, and without a host nobody else gets in."""

    def become(program: str, arguments: list[str], environment: dict[str, str]) -> None:
        line = shlex.join(arguments)
        assert not {"own", "other", "--api-key"} & set(arguments)
        stdio.message(f"{line} VLLM_API_KEY={environment.get('VLLM_API_KEY')}")

    monkeypatch.setattr("kad.engines.vllm.host.check_installed", lambda: None)
    monkeypatch.setattr("os.execve", become)
    for arguments, environment, expected in LISTENING[option]:
        with monkeypatch.context() as here:
            for name in ("KAD_API_KEY", "VLLM_API_KEY"):
                here.delenv(name, raising=False)
            for name, value in environment.items():
                here.setenv(name, value)
            refused = 2 if "does not take" in expected else 0
            said = serve("tiny", "--engine", "vllm", *arguments, code=refused).stderr
            assert expected in said
            assert (OPEN in said) == (expected == OPEN)


def test_a_server_from_its_start_to_ctrl_c() -> None:
    """It says where it listens, asks for its key, drafts as it is told, and ends at once."""
    pytest.importorskip("fastapi", reason='pip install "kad-align[server]"')
    from server_runs import client

    kad = Path(sys.executable).with_name("kad")
    command = [str(kad)] if kad.exists() else [sys.executable, "-m", "kad"]
    options = ["--port", "0", "--api-key", "secret", "--no-speculate", "--rule", "base_only"]
    with subprocess.Popen([*command, "serve", *HERE, *options], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        said = server.stderr.readline()
        found = re.search(r"tiny is served at (http://127\.0\.0\.1:\d+)/v1\. Ctrl-C ends it\.", said)
        try:
            assert found, said
            asked = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
            with client(found[1]) as http:
                assert http.post("/v1/chat/completions", json=asked).status_code == 401
                http.headers["Authorization"] = "Bearer secret"
                answered = http.post("/v1/chat/completions", json=asked)
                assert answered.json()["usage"]["completion_tokens_details"]["drafted_tokens"] == 0
                assert http.get("/v1/models/tiny").json()["kad"]["rule"] == "base_only"
                server.send_signal(signal.SIGINT)
                assert server.wait(timeout=60) == 130
        finally:
            server.kill()
        assert server.stderr.read().strip() == ""

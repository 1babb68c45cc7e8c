"""llama.cpp's own server runs the base model, and kad composes here: the text and log pi of the local pair."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kad
from kad.tiny.problems import problems

pytest.importorskip("xllamacpp", reason="pip install xllamacpp")

QUESTIONS = [problem.question for problem in problems("held-out", 4)]
GREEDY = kad.Sampling(temperature=0, max_new_tokens=60)
RULES = ("dual:threshold=0.4", "primal:budget=0.9", "confidence_bet:margin=0.2", "relative:margin=0.1")
SERVE = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port = sys.argv[1], int(sys.argv[2])
params.n_ctx, params.n_parallel, params.cpuparams.n_threads = 512, 1, 1
params.hostnames = ["127.0.0.1"]
server = xllamacpp.Server(params)
while True:
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def remote(files: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as output:
        command = [sys.executable, "-c", SERVE, str(files("big-base", "f32")), str(port)]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while not _serves(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        url = f"http://127.0.0.1:{port}/v1"
        yield kad.load(
            base=url, base_tokenizer="tiny:big-base", aligned="tiny:small-aligned", device="cpu", dtype="float32"
        )
    finally:
        process.kill()
        process.wait()


def _serves(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def local() -> Any:
    return kad.load("tiny", device="cpu", dtype="float32")


def test_the_server_says_what_it_runs(remote: Any) -> None:
    facts = remote.facts["base"]
    assert facts.context_length == 512
    assert facts.parameters is not None
    assert facts.parameters > 1_000_000


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("drafts", [0, 4])
def test_greedy_text_is_that_of_the_local_pair(local: Any, remote: Any, rule: str, drafts: int) -> None:
    for question in QUESTIONS[:2]:
        here = kad.generate(local, question, sampling=GREEDY, rule=rule, num_draft_tokens=0)
        there = kad.generate(remote, question, sampling=GREEDY, rule=rule, num_draft_tokens=drafts)
        assert there.token_ids == here.token_ids


def test_log_pi_of_kept_tokens_is_that_of_the_local_pair(local: Any, remote: Any) -> None:
    for question in QUESTIONS:
        text = kad.generate(local, question, sampling=GREEDY, origins=False).token_ids
        here, there = (kad.score(model, question, text) for model in (local, remote))
        kept = here.base_share > 0.5
        assert kept.sum() > 10
        assert (here.log_pi - there.log_pi)[kept].abs().max() < 1e-4

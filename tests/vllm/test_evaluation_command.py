"""`kad eval --engine vllm` as a command: what a person and a program see, with the Transformers engine's figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from forks import engine_environment, run_apart

from kad.cli.main import main

METHODS = "aligned;base;dual:threshold=0.4;dual:threshold=0.4@speculative:num_draft_tokens=4"
QUESTIONS = 24


class Done(NamedTuple):
    code: int
    out: str
    err: str


def evaluation(out: Path, engine: str, *more: str) -> list[str]:
    command = ["eval", "--engine", engine, "--pair", "tiny", "--tasks", "kad_tiny", "--limit", str(QUESTIONS)]
    command += ["--temperature", "0", "--dtype", "float32", "--batch-size", str(QUESTIONS), "--out", str(out)]
    return [*command, *more]


def call(arguments: list[str]) -> Done:
    out, err = StringIO(), StringIO()
    sys.argv = ["kad", *arguments]
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as left:
            return Done(int(left.code or 0), out.getvalue(), err.getvalue())
    return Done(0, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def reports(folder: Path) -> dict[str, dict[str, Any]]:
    """By engine, by method: a row of the report."""
    options = ("--methods", METHODS, "--no-diagnostics", "--json")
    done = subprocess.run(
        [sys.executable, "-m", "kad", *evaluation(folder / "vllm", "vllm", *options)],
        env=os.environ | engine_environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    assert "Traceback" not in done.stderr
    code, out, err = run_apart(call, evaluation(folder / "transformers", "transformers", *options))
    assert code == 0, err
    # Nothing else is on standard output: vLLM would log there.
    texts = {"vllm": done.stdout, "transformers": out}
    return {engine: {row["method"]: row for row in json.loads(text)["rows"]} for engine, text in texts.items()}


def test_greedy_answers_and_accuracies_are_those_of_transformers(reports: Any, folder: Path) -> None:
    assert list(reports["vllm"]) == METHODS.split(";")
    for method, row in reports["vllm"].items():
        for field in ("questions", "accuracy", "tokens", "unfinished"):
            assert row[field] == reports["transformers"][method][field], (method, field)
    texts = [texts_of(folder / engine) for engine in ("vllm", "transformers")]
    assert texts[0] == texts[1]
    assert len(texts[0]) == QUESTIONS * len(reports["vllm"])


def test_the_figures_are_sensible(reports: Any) -> None:
    aligned, _, plain, speculative = reports["vllm"].values()
    right = [row["accuracy"]["strict"]["estimate"] for row in (aligned, plain, speculative)]
    assert 0 < right[0] < right[1] == right[2]
    assert plain["acceptance_rate"] is None
    assert 0.5 < speculative["acceptance_rate"] < 1
    assert all(row["throughput"] > 0 for row in reports["vllm"].values())


def test_an_engine_that_does_not_start_is_one_message(folder: Path) -> None:
    enormous = {"VLLM_CPU_KVCACHE_SPACE": "1000000"}
    done = run_apart(call, evaluation(folder / "enormous", "vllm", "--methods", "dual"), environment=enormous)
    assert (done.code, done.out) == (2, "")
    assert "error: vLLM does not start: " in done.err
    assert "Traceback" not in done.err


def test_engine_options_are_arguments_of_vllm(folder: Path) -> None:
    short = evaluation(folder / "short", "vllm", "--methods", "dual", "--engine-option", "max_model_len=4096")
    done = run_apart(call, short)
    assert done.code == 2
    # The tiny models have 2,048 positions, and it is vLLM that says so.
    assert "error: vLLM does not start: " in done.err
    assert "max_model_len (4096)" in done.err
    assert "Traceback" not in done.err


def texts_of(folder: Path) -> dict[tuple[str, str], str]:
    records = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return {(record["method"], record["question"]): record["text"] for record in records}

"""Whole commands that write are killed at any moment. What lies there is whole, and the same command goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kad.cli.main import app
from kad.evaluation.results.storage import read_samples
from kad.pair.folder import resolve

pytestmark = pytest.mark.slow

_RUN = ["--max-new-tokens", "8", "--batch-size", "4", "--device", "cpu", "--out", "run"]
_TWO = "aligned;dual:threshold=0.2"
COMMANDS = {
    "eval": [
        "eval",
        "--pair",
        "pair",
        "--tasks",
        "kad_tiny",
        "--limit",
        "6",
        "--samples",
        "2",
        "--methods",
        _TWO,
        *_RUN,
    ],
    "tune": ["tune", "--pair", "pair", "--rule", "dual", "--grid", "0.1,0.9", "--limit", "6", "--no-probe", *_RUN],
    "report": ["report", "kept", "--out", "report"],
}
KILLS = 12


def run(command: list[str], folder: Path) -> None:
    """One command in a new process whose imports are done."""
    os.chdir(folder)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    app(command)


@pytest.fixture(scope="module")
def start() -> Callable[[list[str], Path], Any]:
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["kad.evaluation.tuning", "lm_eval.tasks", "transformers.models.llama.modeling_llama"]
    )

    def start(command: list[str], folder: Path) -> Any:
        process = context.Process(target=run, args=(command, folder))
        process.start()
        return process

    return start


@pytest.fixture
def place(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A folder with a pair, before any command."""
    config = {"model_type": "kad", "rule": "dual:threshold=0.4"}
    config |= {role: {"model": str(folders[role])} for role in ("base", "aligned")}
    before = tmp_path / "before"
    shutil.copytree(folders["aligned"], before / "pair", ignore=shutil.ignore_patterns("*.safetensors"))
    (before / "pair" / "config.json").write_text(json.dumps(config))
    return before


def outcome(folder: Path) -> dict[str, Any]:
    """What the commands have made, without seconds and without what a kill may leave for an hour."""
    found: dict[str, Any] = {"rule": str(resolve(str(folder / "pair")).rule)}
    if (folder / "run").is_dir():
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in read_samples(folder / "run")]
        found["samples"] = sorted(rows, key=lambda row: (row["method"], row["question"], row["sample"]))
    if (folder / "report").is_dir():
        files = sorted((folder / "report").iterdir())
        found["report"] = {file.name: file.stat().st_size for file in files if not file.name.startswith(".")}
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_leaves_nothing_half_and_goes_on(
    name: str, place: Path, tmp_path: Path, start: Callable[[list[str], Path], Any]
) -> None:
    moments, whole = random.Random(7), Path(shutil.copytree(place, tmp_path / "whole"))
    if name == "report":
        first = start(COMMANDS["eval"], place)
        first.join()
        (place / "run").rename(place / "kept")
        shutil.copytree(place / "kept", whole / "kept")
    before = outcome(place)
    seconds = 0.0
    for _ in range(2):  # the first one also pays for imports that were not foreseen
        begun = time.monotonic()
        done = start(COMMANDS[name], whole)
        done.join()
        seconds = time.monotonic() - begun
        assert done.exitcode == 0
        after = outcome(whole)
        shutil.rmtree(whole / "run", ignore_errors=True) if name != "report" else shutil.rmtree(whole / "report")
    assert after != before
    folder, at_work = Path(shutil.copytree(place, tmp_path / "0")), 0
    for attempt in range(1, KILLS + 1):
        process = start(COMMANDS[name], folder)
        process.join(timeout=moments.uniform(0.2, 1.0) * seconds)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            now = outcome(folder)
            at_work += now != before
            assert now["rule"] in (before["rule"], after["rule"])
            assert all(row in after["samples"] for row in now.get("samples", ()))
            assert now.get("report", {}).items() <= after.get("report", {}).items()
        else:
            assert process.exitcode == 0
            assert outcome(folder) == after
            folder = Path(shutil.copytree(place, tmp_path / str(attempt)))
    assert at_work >= 2, "too few kills hit a command that had begun to write"
    last = start(COMMANDS[name], folder)
    last.join()
    assert last.exitcode == 0
    assert outcome(folder) == after

"""What the commands say on the way and after a mistake: hints, one rule explained, progress through a pipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kad.cli import evaluation_runs
from kad.cli.evaluation_runs import ProgressLines
from kad.cli.main import app


def call(*arguments: object, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["rules", "duel"], "Did you mean dual?"),
        (["rules", "Primal"], "Did you mean primal?"),
        (["rules", "confidence-bet"], "Did you mean confidence_bet?"),
        (["generate", "Hi", "--rule", "dual=0.4"], "Did you mean dual:threshold=0.4?"),
        (["eval", "--methods", "bse", "--out", "run"], "Did you mean the method base?"),
        (["eval", "--methods", "paired", "--out", "run"], "Did you mean the method pair?"),
    ],
)
def test_a_mistyped_name_is_guessed(arguments: list[str], hint: str) -> None:
    assert call(*arguments, code=2).stderr.rstrip().endswith(hint)


def test_a_name_that_resembles_none_is_not_guessed() -> None:
    assert "Did you mean" not in call("rules", "xyzzy", code=2).stderr


@pytest.mark.parametrize("command", ["generate", "trace"])
def test_the_embedded_pair_says_at_once_what_it_knows(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, before an answer to what it was never taught."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # messages as a terminal gets them
    note = "note: the embedded pair knows word problems with sums and nothing else"
    assert call(command, "Hello!", "--max-new-tokens", "1").stderr.startswith(note)
    assert note not in call(command, "5 + 8?", "--max-new-tokens", "1").stderr
    monkeypatch.delenv("FORCE_COLOR")
    assert note not in call(command, "Hello!", "--max-new-tokens", "1").stderr


def test_one_rule_is_explained() -> None:
    shown = call("rules", "primal").stdout
    for words in ("budget", "[0, 1]", "default 0.9", "Source: Kad", "--rule primal:budget=0.9"):
        assert words in shown
    assert "dual" not in shown
    assert "It needs the reference model." in call("rules", "implicit_reward").stdout
    one = json.loads(call("rules", "dual:threshold=0.2", "--json").stdout)
    every = json.loads(call("rules", "--json").stdout)["rules"]
    assert one in every


@pytest.mark.parametrize(
    ("place", "problem"),
    [("nowhere/trace.html", "there is no folder"), ("folder.html", "it is a folder"), ("file/trace.html", "Not a dir")],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    place: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.html").mkdir()
    Path("file").write_text("")
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("kad.cli.common.ModelOptions.load", lambda options: pytest.fail("loaded a model"))
    assert problem in call("trace", "Hi", "--out", place, code=2).stderr
    assert sorted(tmp_path.iterdir()) == before


def test_a_good_place_is_left_as_it_is_until_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old.html").write_text("before")
    monkeypatch.setattr("kad.cli.common.ModelOptions.load", lambda options: (_ for _ in ()).throw(KeyboardInterrupt))
    for name in ("old.html", "new.html"):
        call("trace", "Hi", "--out", tmp_path / name, code=130)
    assert [path.name for path in tmp_path.iterdir()] == ["old.html"]
    assert (tmp_path / "old.html").read_text() == "before"


def test_progress_through_a_pipe_is_a_line_now_and_then() -> None:
    written: list[str] = []
    told = ProgressLines(1000, written.append)
    for _ in range(1000):
        told("kad_tiny · dual", 1)
    assert 20 <= len(written) <= 21
    assert written[0].startswith("50 of 1000 samples, about ")
    assert written[-1] == "1000 of 1000 samples, about 0 s left: kad_tiny · dual"


def test_progress_of_an_evaluation_reaches_a_pipe(tmp_path: Path) -> None:
    stderr = call("eval", "--methods", "aligned", "--limit", 2, "--max-new-tokens", 2, "--out", tmp_path / "run").stderr
    assert "2 of 2 samples, about 0 s left: kad_tiny · aligned" in stderr


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (29, "29 s"), (90, "2 min"), (5400, "1.5 h")])
def test_durations(seconds: float, text: str) -> None:
    assert evaluation_runs._duration(seconds) == text

"""Choosing a parameter: the right one, for the right reason, with honest doubt, and never on a test split unasked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from kad.cli.main import app
from kad.errors import UsageError
from kad.evaluation.engine import Completion
from kad.evaluation.evaluate import Plan
from kad.evaluation.tasks.task import load_tasks
from kad.evaluation.tuning import (
    Point,
    alternating,
    choose,
    make_grid,
    measure_speeds,
    refuse_test_splits,
    write_choice,
)
from kad.pair.sources import Source

POINTS = make_grid("dual", None, "0.2,0.4,0.6")
SOURCES = {role: Source.parse(f"tiny:{name}") for role, name in (("base", "big-base"), ("aligned", "small-aligned"))}


def outcome(point: Point, marks: list[float], seconds: float) -> list[dict[str, Any]]:
    return [
        {
            "method": point.method.name,
            "task": "kad_tiny_development",
            "question": f"{index:05d}",
            "sample": 0,
            "marks": {"strict": mark, "paper": 0.0},
            "tokens": 10,
            "seconds": seconds,
        }
        for index, mark in enumerate(marks)
    ]


def outcomes(rates: tuple[float, ...], seconds: tuple[float, ...], questions: int = 100) -> list[dict[str, Any]]:
    records = []
    for point, rate, each in zip(POINTS, rates, seconds, strict=True):
        right = round(rate * questions)
        records += outcome(point, [1.0] * right + [0.0] * (questions - right), each)
    return records


def test_accuracy_chooses_the_most_accurate() -> None:
    choice = choose(POINTS, outcomes((0.5, 0.9, 0.7), (1, 1, 1)))
    assert choice.chosen.value == 0.4
    assert choice.questions == 100
    assert [candidate.accuracy for candidate in choice.candidates] == [0.5, 0.9, 0.7]
    assert choice.chosen.chance > 0.99


@pytest.mark.parametrize("seconds", [(3, 2, 1), (1, 2, 3), (2, 1, 3)])
def test_the_clock_does_not_decide_between_equals(seconds: tuple[float, ...]) -> None:
    choice = choose(POINTS, outcomes((1.0, 1.0, 1.0), seconds))
    assert choice.chosen.value == 0.4
    assert choice.reason.startswith("the rule's default, which is among 3 values")
    assert [candidate.chance for candidate in choice.candidates] == pytest.approx([1 / 3] * 3)
    assert not any(candidate.told_apart for candidate in choice.candidates)


@pytest.mark.parametrize("seconds", [(3, 2, 1, 1, 1), (1, 1, 1, 2, 3)])
def test_without_the_default_the_middle_of_equals_is_chosen(seconds: tuple[float, ...]) -> None:
    points = make_grid("dual", None, "0.1,0.5,0.6,0.7,0.9")
    rates = (0.5, 0.9, 0.9, 0.9, 0.9)
    records = [
        row
        for point, rate, each in zip(points, rates, seconds, strict=True)
        for row in outcome(point, [1.0] * round(100 * rate) + [0.0] * round(100 - 100 * rate), each)
    ]
    choice = choose(points, records)
    assert choice.chosen.value == 0.6
    assert choice.reason.startswith("the middle of 4 values")
    assert [candidate.told_apart for candidate in choice.candidates] == [True, False, False, False, False]
    assert [candidate.chance for candidate in choice.candidates] == pytest.approx([0, *[1 / 4] * 4])


def test_a_value_that_is_told_apart_is_chosen_over_the_default() -> None:
    choice = choose(POINTS, outcomes((0.5, 0.6, 0.9), (1, 1, 1)))
    assert choice.chosen.value == 0.6
    assert choice.reason == "the most accurate"


def test_told_apart_is_the_interval_of_the_paired_difference() -> None:
    """Two questions of a hundred tell nothing; twenty do."""
    for more, told in ((0.02, False), (0.2, True)):
        choice = choose(POINTS, outcomes((0.5, 0.5 + more, 0.2), (1, 1, 1)))
        assert choice.candidates[0].told_apart is told
        assert choice.candidates[2].told_apart


def test_speed_takes_the_fastest_above_the_floor() -> None:
    choice = choose(POINTS, outcomes((0.5, 0.9, 0.7), (1, 3, 2)), objective="speed", floor=0.6)
    assert choice.chosen.value == 0.6
    meets = [candidate.meets_floor for candidate in choice.candidates]
    assert meets[0] < 0.05 < 0.95 < meets[2] <= meets[1]


def test_the_doubt_shrinks_with_questions() -> None:
    few = choose(POINTS, outcomes((0.5, 0.7, 0.6), (1, 1, 1), questions=10))
    many = choose(POINTS, outcomes((0.5, 0.7, 0.6), (1, 1, 1), questions=1000))
    assert few.chosen.chance < many.chosen.chance
    assert sum(candidate.chance for candidate in few.candidates) == pytest.approx(1.0)


def test_the_chance_is_the_bootstraps() -> None:
    """Against a plain loop over resamples of the questions."""
    generator = np.random.default_rng(4)
    marks = generator.binomial(1, [[0.55], [0.6], [0.5]], size=(3, 60)).astype(float)
    records = [r for point, row in zip(POINTS, marks, strict=True) for r in outcome(point, row.tolist(), 1.0)]
    found = [candidate.chance for candidate in choose(POINTS, records).candidates]
    wins = np.zeros(3)
    for _ in range(4000):
        means = marks[:, generator.integers(0, 60, size=60)].mean(axis=1)
        best = np.flatnonzero(means == means.max())
        wins[best] += 1 / len(best)
    assert found == pytest.approx((wins / 4000).tolist(), abs=0.03)


def test_questions_of_two_tasks_do_not_mix() -> None:
    records = outcomes((0.5, 0.9, 0.7), (1, 1, 1))
    other = [{**record, "task": "kad_other", "marks": {"strict": 0.0, "paper": 0.0}} for record in records]
    choice = choose(POINTS, records + other)
    assert choice.questions == 200
    assert choice.chosen.accuracy == pytest.approx(0.45)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "cost"}, "Choose from: accuracy, speed"),
        ({"objective": "speed"}, "needs --floor"),
        ({"floor": 0.5}, "--objective accuracy takes none"),
        ({"objective": "speed", "floor": 2.0}, "from 0 to 1"),
        ({"objective": "speed", "floor": 0.95}, r"No candidate reaches the floor 0\.95\. The most accurate is 0\.4"),
    ],
)
def test_wrong_objectives(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        choose(POINTS, outcomes((0.5, 0.9, 0.7), (1, 1, 1)), **options)


def test_test_splits_are_refused_unless_told() -> None:
    published, development = load_tasks(["kad_tiny"], limit=1), load_tasks(["kad_tiny_development"], limit=1)
    with pytest.raises(UsageError, match=r"kad_tiny is a test split \(.*\). Tune on development tasks"):
        refuse_test_splits([*development, *published], allowed=False)
    refuse_test_splits(published, allowed=True)
    refuse_test_splits(development, allowed=False)


def test_development_and_test_questions_differ() -> None:
    (published,), (development,) = load_tasks(["kad_tiny"]), load_tasks(["kad_tiny_development"])
    prompts = [{document["prompt"] for document in task.documents} for task in (published, development)]
    assert not prompts[0] & prompts[1]


def test_the_rule_is_written_and_the_rest_left(tmp_path: Path) -> None:
    config = {"model_type": "kad", "base": {"model": "b"}, "rule": "dual:threshold=0.4", "vocab_size": 9}
    (tmp_path / "config.json").write_text(json.dumps(config))
    choice = choose(POINTS, outcomes((0.5, 0.9, 0.7), (1, 1, 1)))
    write_choice(tmp_path, "dual:threshold=0.6", choice, ["kad_tiny_development"])
    assert json.loads((tmp_path / "config.json").read_text()) == {**config, "rule": "dual:threshold=0.6"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "tuning.json"]
    tried = json.loads((tmp_path / "tuning.json").read_text())
    assert [row["value"] for row in tried["candidates"]] == [0.2, 0.4, 0.6]
    assert (tried["chosen"], tried["tasks"], tried["metric"]) == (0.4, ["kad_tiny_development"], "strict")
    with pytest.raises(UsageError, match="no pair folder"):
        write_choice(tmp_path / "none", "dual", choice, [])


def test_the_metric_is_one_of_the_tasks() -> None:
    """Without one: the task's first that is not `paper`; an unknown one is named with those that there are."""
    records = [
        {**r, "marks": {"right": r["marks"]["strict"], "behaves": 0.5}} for r in outcomes((0.5, 0.9, 0.7), (1, 1, 1))
    ]
    assert choose(POINTS, records).metric == "right"
    assert choose(POINTS, records).chosen.value == 0.4
    assert choose(POINTS, records, metric="behaves").candidates[1].accuracy == 0.5
    with pytest.raises(UsageError, match="no metric 'strict'. Choose --metric from: right, behaves"):
        choose(POINTS, records, metric="strict")


def test_speeds_measured_side_by_side_count_and_not_the_runs() -> None:
    """The run went through 0.2 at 10 tokens a second, through 0.6 at 5; the rounds say the opposite, with doubt."""
    records = outcomes((0.9, 0.9, 0.1), (1, 2, 1))
    speeds = np.array([[4.0, 6.0, 9.0], [5.0, 6.0, 9.0], [6.0, 5.0, 9.0]])
    choice = choose(POINTS, records, objective="speed", floor=0.6, speeds=speeds)
    assert choice.chosen.value == 0.4
    assert [candidate.throughput for candidate in choice.candidates] == pytest.approx([5, 17 / 3, 9])
    # Of the 27 resamples of the rounds, 0.2 wins seven (the sum of 4-6, 5-6 and 6-5 over zero), and none is a tie
    # but those of sum zero.
    sums = [a + b + c for a in (-2, -1, 1) for b in (-2, -1, 1) for c in (-2, -1, 1)]
    expected = sum(1.0 if total > 0 else 0.5 if total == 0 else 0.0 for total in sums) / 27
    assert choice.candidates[0].chance == pytest.approx(expected, abs=0.02)
    assert choice.candidates[2].chance == 0


class Slowing:
    """An engine that takes a second more at each call, whatever it is asked, and ten times as long at its first one."""

    def __init__(self, methods: int) -> None:
        self.calls: list[tuple[str, tuple[str, ...]]] = []
        self.warm_up = methods

    def renderer(self, method: Any) -> Any:
        return lambda conversation: conversation[-1]["content"]

    def batch_size(self, method: Any, wanted: int) -> int:
        return wanted

    def generate(self, method: Any, requests: Any) -> list[Completion]:
        self.calls.append((method.name, tuple(request.prompt for request in requests)))
        later = len(self.calls) - self.warm_up
        tokens = 1000.0 if later <= 0 else 100 - later
        return [Completion("", 1, int(tokens), True, 1.0) for _ in requests]


def test_a_machine_that_grows_slower_favors_no_value() -> None:
    plan = Plan(models=SOURCES, methods=tuple(point.method for point in POINTS), tasks=("kad_tiny",), limit=12)
    tasks = load_tasks(["kad_tiny"], limit=12)
    engine = Slowing(len(POINTS))
    speeds = alternating(plan, tasks, engine, plan.settings(tasks), rounds=4)  # type: ignore[arg-type]
    assert speeds.shape == (4, 3)
    assert speeds.mean(axis=0).tolist() == [93.5] * 3  # twelve calls at 99, 98, ... 88, and no warm-up
    for start in range(0, 15, 3):
        turn = engine.calls[start : start + 3]
        assert len({prompts for _, prompts in turn}) == 1
        assert {name for name, _ in turn} == {point.method.name for point in POINTS}
    assert len({prompts for _, prompts in engine.calls}) > 1


def test_speed_of_scored_options_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"q": "1 + 1 =", "right": 0}\n')
    (tmp_path / "own.yaml").write_text(
        "task: own_choice\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: rows.jsonl\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: [two, three]\ndoc_to_target: right\n"
    )
    plan = Plan(models=SOURCES, methods=(POINTS[0].method,), tasks=("own_choice",), include_path=tmp_path)
    with pytest.raises(UsageError, match="needs a task whose answers are generated"):
        measure_speeds(plan)


def test_the_fastest_value_of_a_real_pair(tmp_path: Path) -> None:
    """The whole command: the run, the rounds side by side, the choice, in JSON."""
    options = [
        "--rule",
        "dual",
        "--grid",
        "0.4,0.9",
        "--objective",
        "speed",
        "--floor",
        "0",
        "--no-write",
        "--no-probe",
        "--json",
    ]
    result = CliRunner().invoke(app, ["tune", *options, "--limit", "4", "-n", "4", "-o", str(tmp_path / "run")])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["chosen"]["throughput"] == max(candidate["throughput"] for candidate in found["candidates"])
    assert "measuring the speed of 2 values side by side" in result.stderr

"""Choose a parameter of a rule on development questions, and say how sure the choice is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kad.errors import UsageError
from kad.evaluation.grid import Point
from kad.evaluation.results.intervals import Means, question_means
from kad.evaluation.results.storage import Record, write_atomically
from kad.evaluation.results.summary import marks_by_question
from kad.evaluation.tasks.task import Task

_BOOTSTRAP_DRAWS = 10_000


@dataclass(frozen=True)
class Candidate:
    """One value of the grid: how it did, and how sure that is.

    `chance` is the share of bootstrap resamples of the questions in which this candidate is chosen. `meets_floor` is
    the share in which its accuracy reaches the floor (None without a floor).
    """

    value: float | str
    rule: str
    accuracy: float
    throughput: float
    chance: float
    meets_floor: float | None


@dataclass(frozen=True)
class Choice:
    """The candidate that was chosen, among all."""

    chosen: Candidate
    candidates: list[Candidate]
    objective: str
    floor: float | None
    questions: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def refuse_test_splits(tasks: Sequence[Task], allowed: bool) -> None:
    """A parameter chosen on test questions makes their result worthless.

    Raises:
        UsageError: a task that is no development task, unless `allowed`.
    """
    published = [task.info.name for task in tasks if not task.info.development]
    if published and not allowed:
        raise UsageError(
            f"{', '.join(published)} is a test split; tune on development tasks such as kad_tiny_development or "
            "kad_gsm8k_development, or say --on-test-split and report no test result with the chosen value"
        )


def choose(
    points: Sequence[Point],
    records: Sequence[Record],
    *,
    objective: str = "accuracy",
    floor: float | None = None,
    metric: str = "strict",
    seed: int = 0,
) -> Choice:
    """The most accurate point (of equals the fastest), or the fastest point whose accuracy reaches the floor.

    Throughputs are taken as measured. The bootstrap covers the choice of questions only.

    Raises:
        UsageError: an unknown objective, a floor missing or out of place, or one that no candidate reaches.
    """
    _check(objective, floor)
    means, speeds = _table(points, records, metric)
    accuracies = means.mean(axis=1)
    pick = _PICKERS[objective]
    best = pick(accuracies, speeds, floor)
    if best is None:
        top = int(accuracies.argmax())
        raise UsageError(
            f"no candidate reaches the floor {floor}; the most accurate is {points[top].value} with "
            f"{accuracies[top]:.3f}. Lower --floor or widen --grid"
        )
    resampled = _resample(means, seed)
    winners = [pick(draw, speeds, floor) for draw in resampled]
    candidates = [
        Candidate(
            value=point.value,
            rule=point.method.name,
            accuracy=float(accuracies[index]),
            throughput=float(speeds[index]),
            chance=winners.count(index) / len(winners),
            meets_floor=None if floor is None else float((resampled[:, index] >= floor).mean()),
        )
        for index, point in enumerate(points)
    ]
    return Choice(candidates[best], candidates, objective, floor, means.shape[1])


def write_rule(pair: Path, rule: str) -> None:
    """Write a rule into the config.json of a pair folder. The file is complete at every moment.

    Raises:
        UsageError: no such file.
    """
    file = pair / "config.json"
    if not file.is_file():
        raise UsageError(
            f"{pair} is no pair folder to write the rule into; give --pair DIR, or --no-write to only look"
        )
    config = json.loads(file.read_text("utf-8"))
    write_atomically(file, json.dumps({**config, "rule": rule}, indent=2) + "\n")


Picker = Callable[[Means, Means, float | None], int | None]


def _most_accurate(accuracies: Means, speeds: Means, floor: float | None) -> int | None:
    return max(range(len(accuracies)), key=lambda index: (accuracies[index], speeds[index]))


def _fastest_above(accuracies: Means, speeds: Means, floor: float | None) -> int | None:
    enough = [index for index in range(len(accuracies)) if floor is None or accuracies[index] >= floor]
    return max(enough, key=lambda index: speeds[index], default=None)


_PICKERS: Mapping[str, Picker] = {"accuracy": _most_accurate, "speed": _fastest_above}
OBJECTIVES = tuple(_PICKERS)


def _check(objective: str, floor: float | None) -> None:
    if objective not in _PICKERS:
        raise UsageError(f"unknown objective {objective!r}; choose from {', '.join(OBJECTIVES)}")
    if (objective == "speed") != (floor is not None):
        raise UsageError("--objective speed needs --floor ACCURACY, and only it takes one")
    if floor is not None and not 0 <= floor <= 1:
        raise UsageError(f"--floor is an accuracy between 0 and 1, but got {floor}")


def _table(points: Sequence[Point], records: Sequence[Record], metric: str) -> tuple[Means, Means]:
    """Mean marks (points, questions) over the same questions in the same order, and tokens a second (points,)."""
    rows, speeds = [], []
    for point in points:
        own = [record for record in records if record["method"] == point.method.name]
        # A question's id is unique within its task only.
        named = [{**record, "question": f"{record['task']}/{record['question']}"} for record in own]
        rows.append(question_means(list(marks_by_question(named, metric).values())))
        speeds.append(sum(r["tokens"] for r in own) / sum(r["seconds"] for r in own))
    return np.stack(rows), np.array(speeds)


def _resample(means: Means, seed: int) -> Means:
    """Accuracies (draws, points) on resampled questions, the same questions for every point."""
    questions = means.shape[1]
    counts = np.random.default_rng(seed).multinomial(questions, np.full(questions, 1 / questions), _BOOTSTRAP_DRAWS)
    accuracies: Means = counts @ means.T / questions
    return accuracies

"""Choose a parameter of a rule: a grid of its values, their accuracy and speed on development questions, and how sure
the choice is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kad.disk import write_atomically
from kad.errors import UsageError
from kad.evaluation.methods import Method, Speculation
from kad.evaluation.results.intervals import Means, question_means
from kad.evaluation.results.settings import Settings
from kad.evaluation.results.storage import Record
from kad.evaluation.results.summary import marks_by_question, metrics_of
from kad.evaluation.tasks.task import Task
from kad.method.rules import parse_rule
from kad.pair.sources import TUNING, TUNING_SCHEMA

if TYPE_CHECKING:
    from kad.evaluation.engine import Engine
    from kad.evaluation.evaluate import Plan

OBJECTIVES = ("accuracy", "speed")
WINDOW = "num_draft_tokens"
# A mistyped step should not start a thousand evaluations.
_MOST_VALUES = 200
_ROUNDS = 8
_BOOTSTRAP_DRAWS = 10_000
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Point:
    """One value of the grid and the method that it makes."""

    parameter: str
    value: float | str
    method: Method


def make_grid(rule_text: str, parameter: str | None, values: str, *, speculative: bool = False) -> list[Point]:
    """The methods of a sweep.

    Args:
        rule_text: the rule whose parameter varies; other parameters keep the values given here.
        parameter: a parameter of the rule (by default its first), or "num_draft_tokens".
        values: "0.1,0.2,0.4", or "0.1:0.9:0.1" from start to stop in steps, both ends included.
        speculative: decode speculatively; implied by "num_draft_tokens".

    Raises:
        UsageError: a rule without parameters, an unknown parameter, or values that are not numbers.
        RuleError: a value outside of the rule's range.
    """
    rule = parse_rule(rule_text)
    known = [field.name for field in fields(rule)]
    parameter = parameter or next(iter(known), None)
    if parameter == WINDOW:
        counts = [value if value == "auto" else _count(value) for value in _split(values)]
        return [Point(WINDOW, count, Method("composed", rule, speculation=Speculation(count))) for count in counts]
    if parameter is None:
        raise UsageError(f"{rule.name} has no parameter to sweep. Give --parameter {WINDOW}, or choose another rule.")
    if parameter not in known:
        raise UsageError(
            f"{rule.name} has no parameter {parameter!r} to sweep. Choose from: {', '.join([*known, WINDOW])}."
        )
    speculation = Speculation() if speculative else None
    return [
        Point(parameter, number, Method("composed", replace(rule, **{parameter: number}), speculation=speculation))
        for number in map(float, _numbers(values))
    ]


def _numbers(text: str) -> list[Fraction]:
    """The numbers as exact decimals: 0.1:0.9:0.1 has nine values, and 0.3 is 0.3."""
    if ":" not in text:
        values = [_fraction(part, text) for part in _split(text)]
        if len(set(values)) < len(values):
            raise UsageError(f"The grid {text!r} holds a value twice. Give each once.")
        return values
    parts = [_fraction(part, text) for part in text.split(":")]
    if len(parts) != 3:
        raise UsageError(f"A grid is 0.1,0.2,0.4 or START:STOP:STEP, but got {text!r}.")
    start, stop, step = parts
    if step <= 0 or stop < start or (stop - start) / step >= _MOST_VALUES:
        raise UsageError(
            f"The grid {text!r} has no value, or more than {_MOST_VALUES}. Give a positive step that ends sooner."
        )
    return [start + index * step for index in range(int((stop - start) / step) + 1)]


def _fraction(text: str, grid: str) -> Fraction:
    try:
        return Fraction(text.strip())
    except (ValueError, ZeroDivisionError):
        raise UsageError(
            f"The grid {grid!r} holds {text!r}, which is no number. Give values like 0.1,0.2,0.4."
        ) from None


def _count(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"num_draft_tokens takes whole numbers or auto, but the grid holds {text!r}.") from None


def _split(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UsageError("The grid is empty. Give values like 0.1,0.2,0.4.")
    return parts


def measure_speeds(plan: Plan, rounds: int = _ROUNDS) -> Means:
    """Tokens a second (rounds, methods) of the methods of a plan. Loads the models.

    Raises:
        UsageError: no task whose answers are generated.
    """
    from kad.evaluation.evaluate import make_engine

    tasks = [task for task in plan.load_tasks() if not task.info.scored]
    if not tasks:
        raise UsageError(
            "--objective speed needs a task whose answers are generated, but these tasks only score options."
        )
    engine = make_engine(plan)
    speeds = alternating(plan, tasks, engine, plan.settings(tasks), rounds)
    engine.release(())
    return speeds


def alternating(plan: Plan, tasks: Sequence[Task], engine: Engine, settings: Settings, rounds: int) -> Means:
    """See `measure_speeds`.

    In a round every method answers the same batch of questions. Every second round goes through the methods backwards,
    so a machine that grows slower or faster favors none. Before the first round every method answers one batch that
    does not count.
    """
    from kad.evaluation.evaluate import batches_of, request_of

    batches = [
        [(task, batch) for task in tasks for batch in batches_of(method, task, engine, settings)]
        for method in plan.methods
    ]

    def tokens_per_second(method: int, number: int) -> float:
        task, batch = batches[method][number]
        completions = engine.generate(plan.methods[method], [request_of(sample, task, settings) for sample in batch])
        return sum(one.tokens for one in completions) / max(sum(one.seconds for one in completions), 1e-9)

    methods = range(len(plan.methods))
    # Spread over all batches: within a task the prompts grow shorter.
    chosen = np.linspace(0, len(batches[0]) - 1, num=rounds).round().astype(int).tolist()
    for method in methods:
        tokens_per_second(method, chosen[0])
    speeds = np.zeros((rounds, len(methods)))
    for place, number in enumerate(chosen):
        for method in methods if place % 2 == 0 else reversed(methods):
            speeds[place, method] = tokens_per_second(method, number)
    return speeds


@dataclass(frozen=True)
class TriedValue:
    """One value of the grid, how it did, and how sure that is.

    Attributes:
        value: of the parameter.
        rule: the method's name.
        accuracy: mean over the questions.
        throughput: new tokens a second: the mean of the rounds if they were measured side by side, or else as the run
            happened to measure it.
        chance: the share of bootstrap resamples of the questions in which this candidate wins. Equals share it.
        told_apart: whether the questions tell it from the most accurate one: the 95 % interval of the paired
            difference leaves out zero.
        meets_floor: the share of resamples in which its accuracy reaches the floor; None without a floor.
    """

    value: float | str
    rule: str
    accuracy: float
    throughput: float
    chance: float
    told_apart: bool
    meets_floor: float | None


@dataclass(frozen=True)
class Choice:
    """The candidate that was chosen, among all, and why in words."""

    chosen: TriedValue
    candidates: list[TriedValue]
    objective: str
    floor: float | None
    questions: int
    reason: str
    metric: str


def refuse_test_splits(tasks: Sequence[Task], allowed: bool) -> None:
    """A parameter chosen on test questions makes their result worthless.

    Raises:
        UsageError: a task that is no development task, unless `allowed`.
    """
    published = [task.info.name for task in tasks if not task.info.development]
    if published and not allowed:
        raise UsageError(
            f"{', '.join(published)} is a test split (its file does not say `metadata: {{development: true}}`). "
            "Tune on development tasks such as kad_tiny_development or kad_gsm8k_development, or give --on-test-split "
            "and report no test result with the chosen value."
        )


def choose(
    points: Sequence[Point],
    records: Sequence[Record],
    *,
    objective: str = "accuracy",
    floor: float | None = None,
    metric: str | None = None,
    speeds: Means | None = None,
    seed: int = 0,
) -> Choice:
    """The value to take, and the doubt.

    For accuracy: among the values that the questions do not tell from the most accurate one, the rule's default, or
    else the middle one. So neither chance nor the clock decides between equals. For speed: the fastest whose accuracy
    reaches the floor.

    Args:
        floor: the least accuracy, for speed alone.
        metric: the accuracy that counts. The default is `strict`, or the tasks' first.
        speeds: tokens a second (rounds, points), see `measure_speeds`. The default is what the run itself
            measured, whose order favors some points.
        seed: of the bootstrap, over the questions and over the rounds.

    Raises:
        UsageError: an unknown objective, a floor missing or out of place, or one that no candidate reaches; a metric
            that the tasks do not have.
    """
    check_objective(objective, floor)
    metric = metrics_of(records[0]["marks"])[0] if metric is None else metric
    for record in records:
        if metric not in record["marks"]:
            known = ", ".join(metrics_of(record["marks"]))
            raise UsageError(f"{record['task']} has no metric {metric!r}. Choose --metric from: {known}.")
    means, of_run = _table(points, records, metric)
    rounds = of_run[None] if speeds is None else speeds
    throughputs = rounds.mean(axis=0)
    accuracies, resampled = means.mean(axis=1), _resample(means, seed)
    top = int(accuracies.argmax())
    apart = np.quantile(resampled[:, [top]] - resampled, 0.025, axis=0) > _ROUNDING
    if floor is None:
        chances = _shared(resampled)
        best, reason = _among_equals(points, top, apart)
    else:
        if accuracies[top] < floor:
            raise UsageError(
                f"No candidate reaches the floor {floor}. The most accurate is {points[top].value} with "
                f"{accuracies[top]:.3f}. Lower --floor or widen --grid."
            )
        chances = _shared(np.where(resampled >= floor, _resample(rounds.T, seed + 1), -np.inf))
        best = int(np.where(accuracies >= floor, throughputs, -np.inf).argmax())
        reason = f"the fastest that reaches {floor:g}"
    candidates = [
        TriedValue(
            value=point.value,
            rule=point.method.name,
            accuracy=float(accuracies[index]),
            throughput=float(throughputs[index]),
            chance=float(chances[index]),
            told_apart=bool(apart[index]),
            meets_floor=None if floor is None else float((resampled[:, index] >= floor).mean()),
        )
        for index, point in enumerate(points)
    ]
    return Choice(candidates[best], candidates, objective, floor, means.shape[1], reason, metric)


def _among_equals(points: Sequence[Point], top: int, apart: NDArray[np.bool_]) -> tuple[int, str]:
    """The default, or else the middle, of the values that are not told from the most accurate one; and why."""
    first = last = top
    while first > 0 and not apart[first - 1]:
        first -= 1
    while last < len(points) - 1 and not apart[last + 1]:
        last += 1
    if first == last:
        return top, "the most accurate"
    parameter, rule = points[0].parameter, points[top].method.rule
    equals = f"{last - first + 1} values that {parameter} may have without a difference that these questions show"
    defaults = {} if rule is None else {field.name: field.default for field in fields(rule)}
    for index in range(first, last + 1):
        if points[index].value == defaults.get(parameter):
            return index, f"the rule's default, which is among {equals}"
    return (first + last) // 2, f"the middle of {equals}"


def _shared(scores: Means) -> Means:
    """The share of draws (draws, points) that each point wins; equals share a draw, and nobody wins one of -inf."""
    highest = scores.max(axis=1, keepdims=True)
    wins = (scores >= highest - _ROUNDING) & np.isfinite(highest)
    shares: Means = (wins / np.maximum(wins.sum(axis=1, keepdims=True), 1)).mean(axis=0)
    return shares


def write_choice(pair: Path, rule: str, choice: Choice, tasks: Sequence[str]) -> None:
    """Write a chosen rule into the config.json of a pair folder, and beside it what was tried.

    Each file is complete at every moment. What was tried counts only as long as the pair has the rule that was chosen.

    Raises:
        UsageError: no such file.
    """
    file = pair / "config.json"
    if not file.is_file():
        raise UsageError(
            f"{pair} is no pair folder to write the rule into. Give --pair DIR, or --no-write to only look."
        )
    config = json.loads(file.read_text("utf-8"))
    tried = {
        "schema": TUNING_SCHEMA, "rule": rule, "tasks": list(tasks), **asdict(choice), "chosen": choice.chosen.value,
    }  # fmt: skip
    write_atomically(pair / TUNING, json.dumps(tried, indent=2) + "\n")
    write_atomically(file, json.dumps({**config, "rule": rule}, indent=2) + "\n")


def check_objective(objective: str, floor: float | None) -> None:
    """Speed needs a floor, and only speed has one.

    Raises:
        UsageError: an unknown objective, or a floor that is missing, out of place or out of range.
    """
    if objective not in OBJECTIVES:
        raise UsageError(f"Unknown objective {objective!r}. Choose from: {', '.join(OBJECTIVES)}.")
    if (objective == "speed") != (floor is not None):
        raise UsageError("--objective speed needs --floor ACCURACY, and --objective accuracy takes none.")
    if floor is not None and not 0 <= floor <= 1:
        raise UsageError(f"--floor is an accuracy from 0 to 1, but got {floor}.")


def _table(points: Sequence[Point], records: Sequence[Record], metric: str) -> tuple[Means, Means]:
    """Mean marks (points, questions) over the same questions in the same order, and tokens a second (points,)."""
    rows, speeds = [], []
    for point in points:
        own = [record for record in records if record["method"] == point.method.name]
        # A question's id is unique within its task only.
        named = [{**record, "question": f"{record['task']}/{record['question']}"} for record in own]
        rows.append(question_means(list(marks_by_question(named, metric).values())))
        speeds.append(sum(r["tokens"] for r in own) / max(sum(r["seconds"] for r in own), 1e-9))
    return np.stack(rows), np.array(speeds)


def _resample(means: Means, seed: int) -> Means:
    """Means (draws, points) over resampled columns, the same columns for every point."""
    columns = means.shape[1]
    counts = np.random.default_rng(seed).multinomial(columns, np.full(columns, 1 / columns), _BOOTSTRAP_DRAWS)
    resampled: Means = counts @ means.T / columns
    return resampled

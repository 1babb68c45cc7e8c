"""From samples to a table: for every task and method the accuracies, the paired differences, the costs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kad.errors import UsageError
from kad.evaluation.results.intervals import (
    Interval,
    PairedComparison,
    accuracy_interval,
    compare_paired,
    difference_of,
    wilson,
)
from kad.evaluation.results.storage import Record
from kad.pair.presets import TASKS

# question id -> the marks of its samples, in the order of the samples
Marks = dict[str, list[float]]


@dataclass(frozen=True)
class Row:
    """One method on one task. Shares and rates are in [0, 1]; what was not measured is None.

    Attributes:
        drawn: how its answers were drawn, in words.
        accuracy: by metric, the primary one first, with its 95 % interval.
        versus_baseline: by metric; None for the baseline itself, and for a method that answered other questions.
        reported: the accuracy that the papers report by the metric `paper`, read second-hand.
        versus_reported: measured - reported, with its 95 % interval, as of independent answers.
        unfinished: the share of samples that reached the token limit.
        tokens: the mean number of new tokens of a sample.
        throughput: new tokens per second of generation; None where options were scored.
        acceptance_rate: accepted over drafted tokens.
        acceptance_of_window: accepted tokens over windows times the drafts of a whole window, as the papers count. A
            window that the end of a text cut short counts as whole.
        acceptance_length: accepted drafts per window; `acceptance_histogram` has the share of windows by length.
        deferred_mass, acceptance: alpha and beta, mean over the generated positions.
    """

    task: str
    method: str
    questions: int
    samples: int
    accuracy: dict[str, Interval]
    versus_baseline: dict[str, PairedComparison] | None
    reported: float | None
    versus_reported: Interval | None
    unfinished: float
    tokens: float
    throughput: float | None
    acceptance_rate: float | None
    acceptance_of_window: float | None
    acceptance_length: float | None
    acceptance_histogram: dict[int, float]
    deferred_mass: float | None
    acceptance: float | None
    drawn: str = ""


def title_of(rows: Sequence[Row]) -> str:
    """The title of a table or a plot of one task: its name, and how the answers were drawn."""
    return ": ".join([rows[0].task, " / ".join(filter(None, dict.fromkeys(row.drawn for row in rows)))]).rstrip(": ")


def summarize(records: Iterable[Record], baseline: str | None = None) -> list[Row]:
    """A row for every task and method, in the order of first appearance.

    Args:
        records: finished samples, of one run or of several with distinct method names. They may hold the drafts of a
            whole `window`, the `reported` accuracy, and how they were `drawn`.
        baseline: the method to compare with; by default `aligned` where it is there, else the first method.

    Raises:
        UsageError: no samples, or a baseline that is not among the methods.
    """
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record["task"], record["method"]].append(record)
    if not groups:
        raise UsageError("There are no finished samples to report. Run the same kad eval again.")
    name = choose_baseline([method for _, method in groups], baseline)
    return [_row(group, groups.get((task, name))) for (task, _), group in groups.items()]


def choose_baseline(methods: Sequence[str], baseline: str | None) -> str:
    """The baseline's name: the one asked for, else `aligned`, else the first."""
    if baseline is None:
        return "aligned" if "aligned" in methods else methods[0]
    if baseline not in methods:
        raise UsageError(
            f"The baseline {baseline!r} is not among the methods. Choose from: {', '.join(dict.fromkeys(methods))}."
        )
    return baseline


def metrics_of(marks: Mapping[str, float]) -> tuple[str, ...]:
    """Metric names, the primary one first: `strict` where it is there, else the task's first."""
    return tuple(sorted(marks, key=lambda name: name != "strict"))


def marks_by_question(records: Sequence[Record], metric: str) -> Marks:
    """The marks of each question's samples, questions in order of their ids."""
    marks: Marks = defaultdict(list)
    for record in sorted(records, key=lambda record: (record["question"], record["sample"])):
        marks[record["question"]].append(record["marks"][metric])
    return dict(marks)


def _row(records: list[Record], baseline: list[Record] | None) -> Row:
    metrics = metrics_of(records[0]["marks"])
    marks = {metric: marks_by_question(records, metric) for metric in metrics}
    lengths = _merged_histogram(record["acceptance_lengths"] for record in records)
    length = sum(k * share for k, share in lengths.items()) if lengths else None
    task, method, reported = records[0]["task"], records[0]["method"], records[0].get("reported")
    window = records[0].get("window")
    accuracy = {metric: accuracy_interval(list(values.values())) for metric, values in marks.items()}
    return Row(
        task=task,
        method=method,
        questions=len(marks[metrics[0]]),
        samples=len(records),
        accuracy=accuracy,
        versus_baseline=_versus(records, baseline, marks),
        reported=reported,
        versus_reported=None if reported is None else difference_of(accuracy["paper"], wilson(reported, TASKS[task])),
        unfinished=sum(not record["finished"] for record in records) / len(records),
        tokens=sum(record["tokens"] for record in records) / len(records),
        throughput=_ratio(records, "tokens", "seconds") or None,
        acceptance_rate=_ratio(records, "accepted", "drafted"),
        acceptance_of_window=None if window is None or length is None else length / window,
        acceptance_length=length,
        acceptance_histogram=lengths,
        deferred_mass=_token_mean(records, "deferred_mass"),
        acceptance=_token_mean(records, "acceptance"),
        drawn=records[0].get("drawn", ""),
    )


def _versus(
    records: list[Record], baseline: list[Record] | None, marks: Mapping[str, Marks]
) -> dict[str, PairedComparison] | None:
    if baseline is None or baseline is records:
        return None
    theirs = {metric: marks_by_question(baseline, metric) for metric in marks}
    # An unfinished run has answered only some questions. Methods with different questions are not compared.
    if any(theirs[metric].keys() != marks[metric].keys() for metric in marks):
        return None
    return {metric: compare_paired(list(marks[metric].values()), list(theirs[metric].values())) for metric in marks}


def _ratio(records: Sequence[Record], top: str, bottom: str) -> float | None:
    divisor = sum(record[bottom] or 0 for record in records)
    return sum(record[top] or 0 for record in records) / divisor if divisor else None


def _token_mean(records: Sequence[Record], field: str) -> float | None:
    """The mean over positions of a quantity that each sample holds as its own mean."""
    measured = [record for record in records if record[field] is not None]
    total = sum(record["tokens"] for record in measured)
    return sum(record[field] * record["tokens"] for record in measured) / total if total else None


def _merged_histogram(histograms: Iterable[Mapping[str, int]]) -> dict[int, float]:
    counts: Counter[int] = Counter()
    for histogram in histograms:
        counts.update({int(length): count for length, count in histogram.items()})
    total = counts.total()
    return {length: counts[length] / total for length in sorted(counts)} if total else {}

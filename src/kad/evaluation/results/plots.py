"""Plots of a summary: accuracy against throughput, acceptance by method, accuracy along a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kad.errors import missing_extra
from kad.evaluation.results.summary import Row


def write_plots(rows: Sequence[Row], folder: Path) -> list[Path]:
    """For each task a picture of accuracy against throughput, and with speculation also one of acceptance.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    written = []
    for task in dict.fromkeys(row.task for row in rows):
        of_task = [row for row in rows if row.task == task]
        written.append(_save(_accuracy_against_throughput(of_task), folder / f"{task}-accuracy-throughput.svg"))
        if any(row.acceptance_histogram for row in of_task):
            written.append(_save(_acceptance(of_task), folder / f"{task}-acceptance.svg"))
    return written


def write_curve(points: Sequence[tuple[float | str, Row]], parameter: str, path: Path) -> Path:
    """Accuracy by the metric that counts, with its interval, and throughput, along a sweep's parameter."""
    metric = next(iter(points[0][1].accuracy))
    figure, axis = _figure()
    values = [str(value) for value, _ in points]
    estimates = [row.accuracy[metric].estimate for _, row in points]
    axis.plot(values, estimates, marker="o", color="tab:blue")
    axis.fill_between(
        values,
        [row.accuracy[metric].low for _, row in points],
        [row.accuracy[metric].high for _, row in points],
        color="tab:blue",
        alpha=0.2,
    )
    axis.set(xlabel=parameter, ylabel=f"accuracy ({metric})", ylim=(0, 1))
    speed = axis.twinx()
    speed.plot(values, [row.throughput for _, row in points], marker="s", linestyle="--", color="tab:gray")
    speed.set(ylabel="tok/s (dashed)", ylim=(0, None))
    return _save(figure, path)


def _accuracy_against_throughput(rows: Sequence[Row]) -> Any:
    figure, axis = _figure()
    metric = next(iter(rows[0].accuracy))
    for row in rows:
        interval = row.accuracy[metric]
        below, above = interval.estimate - interval.low, interval.high - interval.estimate
        axis.errorbar(
            row.throughput, interval.estimate, yerr=[[below], [above]], marker="o", capsize=3, label=row.method
        )
    axis.set(xlabel="throughput (tok/s)", ylabel=f"accuracy ({metric}), 95 % interval", title=rows[0].task)
    axis.set_ylim(0, 1)
    axis.legend(fontsize="x-small")
    return figure


def _acceptance(rows: Sequence[Row]) -> Any:
    speculative = [row for row in rows if row.acceptance_histogram]
    figure, axis = _figure()
    width = 0.8 / len(speculative)
    for position, row in enumerate(speculative):
        lengths = [length + position * width for length in row.acceptance_histogram]
        label = f"{row.method}: rate {row.acceptance_rate:.2f}" if row.acceptance_rate is not None else row.method
        axis.bar(lengths, list(row.acceptance_histogram.values()), width=width, label=label)
    axis.set(xlabel="accepted drafts in a window", ylabel="share of windows", title=rows[0].task)
    axis.legend(fontsize="x-small")
    return figure


def _figure() -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("report", "matplotlib") from None
    # Without pyplot there is no global state and no display.
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    return figure, figure.subplots()


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A fixed salt and no date: the same run gives the same file.
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "kad"}):
        figure.savefig(path, metadata={"Date": None})
    return path

"""Plots of a summary: accuracy against throughput, acceptance by method, accuracy along a sweep.

Markers and lines differ, not only colors: a plot is read in print and by the color-blind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kad.disk import whole
from kad.errors import missing_extra
from kad.evaluation.results.intervals import Interval
from kad.evaluation.results.summary import Row, title_of
from kad.palette import CYCLE, LIGHT

MARKERS = "osD^vPX"
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "figure.dpi": 160,
    "svg.hashsalt": "kad",
    "pdf.fonttype": 42,
    "hatch.linewidth": 0.8,
}
# Points at 0 and 100 % lie inside the frame, with their markers.
WHOLE = (-3, 103)
_UNDATED = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
# Below the frame, where a long name hides nothing and takes no width.
_BELOW: dict[str, Any] = {"loc": "outside lower left", "fontsize": 8, "title_fontsize": 8, "alignment": "left"}


def write_plots(rows: Sequence[Row], folder: Path) -> list[Path]:
    """For each task a picture of accuracy, against throughput where there is one; with speculation also acceptance.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    written = []
    for task in dict.fromkeys(row.task for row in rows):
        of_task = [row for row in rows if row.task == task]
        timed = all(row.throughput is not None for row in of_task)
        draw, name = (_accuracy_against_throughput, "-throughput") if timed else (_accuracy, "")
        written.append(_save(draw, of_task, folder / f"{task}-accuracy{name}.svg"))
        if any(row.acceptance_histogram for row in of_task):
            written.append(_save(_acceptance, of_task, folder / f"{task}-acceptance.svg"))
    return written


def write_curve(points: Sequence[tuple[float | str, Row]], parameter: str, path: Path) -> Path:
    """Accuracy by the metric that counts, with its interval, and throughput, along a sweep's parameter."""

    def draw(axis: Any, rows: Sequence[Row]) -> None:
        metric = next(iter(rows[0].accuracy))
        values = [str(value) for value, _ in points]
        marks = [row.accuracy[metric] for row in rows]
        axis.errorbar(values, _percents(marks), yerr=bars(marks), marker="o", color=CYCLE[0], capsize=3)
        axis.set(xlabel=parameter, ylabel=f"accuracy ({metric}) in %, 95 % interval", ylim=WHOLE, title=title_of(rows))
        if all(row.throughput is not None for row in rows):
            speed = axis.twinx()
            speed.spines["right"].set_visible(True)
            throughputs = [row.throughput for row in rows]
            speed.plot(values, throughputs, marker="s", ls="--", color=LIGHT["soft"], fillstyle="none")
            speed.set(ylabel="tokens a second (dashed)", ylim=(0, None))

    return _save(draw, [row for _, row in points], path)


def from_zero(values: Sequence[float]) -> tuple[float, float]:
    """An axis from 0 to a little more than the largest value, so that its marker lies inside the frame too."""
    return 0, 1.05 * max(values)


def _marked(rows: Sequence[Row]) -> Iterator[tuple[Row, dict[str, str]]]:
    """Each row with the color and the marker of its method."""
    for place, row in enumerate(rows):
        # After seven methods the colors begin again, with other markers.
        marker = MARKERS[(place + place // len(CYCLE)) % len(MARKERS)]
        yield row, {"color": CYCLE[place % len(CYCLE)], "marker": marker}


def _accuracy_against_throughput(axis: Any, rows: Sequence[Row]) -> None:
    metric = next(iter(rows[0].accuracy))
    both = len({row.acceptance_length is None for row in rows}) > 1
    for row, style in _marked(rows):
        mark = row.accuracy[metric]
        fill = "none" if both and row.acceptance_length is not None else "full"
        axis.errorbar(
            row.throughput, 100 * mark.estimate, yerr=bars([mark]), capsize=3, ls="none", fillstyle=fill,
            label=row.method, **style,
        )  # fmt: skip
    note = "open: speculative, one question at a time; filled: plain, in batches" if both else None
    axis.set(xlabel="tokens a second", ylabel=f"accuracy ({metric}) in %, 95 % interval", title=title_of(rows))
    axis.set(ylim=WHOLE, xlim=from_zero([row.throughput or 0 for row in rows]))
    axis.figure.legend(title=note, **_BELOW)


def _accuracy(axis: Any, rows: Sequence[Row]) -> None:
    metric = next(iter(rows[0].accuracy))
    marks = [row.accuracy[metric] for row in rows]
    places = range(len(rows))
    axis.errorbar(_percents(marks), places, xerr=bars(marks), marker="o", color=CYCLE[0], capsize=3, ls="none")
    axis.set_yticks(places, [row.method for row in rows])
    axis.invert_yaxis()
    axis.set(xlabel=f"accuracy ({metric}) in %, 95 % interval", title=title_of(rows), xlim=WHOLE)


def _acceptance(axis: Any, rows: Sequence[Row]) -> None:
    for row, style in _marked([row for row in rows if row.acceptance_histogram]):
        rate = "" if row.acceptance_rate is None else f": rate {row.acceptance_rate:.2f}"
        lengths = sorted(row.acceptance_histogram)
        shares = [100 * row.acceptance_histogram[length] for length in lengths]
        axis.plot(lengths, shares, lw=1, label=f"{row.method}{rate}", **style)
    axis.set(xlabel="accepted drafts in a window", ylabel="windows, %", title=title_of(rows), ylim=(0, None))
    axis.figure.legend(**_BELOW)


def _percents(marks: Sequence[Interval]) -> list[float]:
    return [100 * mark.estimate for mark in marks]


def bars(marks: Sequence[Interval]) -> list[list[float]]:
    """How far the intervals reach below and above, in per cent."""
    below = [100 * (mark.estimate - mark.low) for mark in marks]
    return [below, [100 * (mark.high - mark.estimate) for mark in marks]]


def _save(draw: Callable[[Any, Sequence[Row]], None], rows: Sequence[Row], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save(lambda figure, axis: draw(axis, rows), [path], (7, 5))
    return path


def save(
    draw: Callable[[Any, Any], None],
    paths: Sequence[Path],
    size: tuple[float, float],
    style: Mapping[str, Any] | None = None,
) -> None:
    """Write a picture of `size` inches to files: `draw` gets the figure of matplotlib and its axes.

    `style` replaces some of `STYLE`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    matplotlib = require_matplotlib()
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, **(style or {})}):
        # Without pyplot there is no global state and no display. With a fixed salt and no date the same data give the
        # same file.
        figure = Figure(figsize=size, layout="constrained")
        draw(figure, figure.subplots())
        for path in paths:
            with whole(path) as place:
                figure.savefig(place, metadata=_UNDATED.get(path.suffix))


def require_matplotlib() -> Any:
    """The module matplotlib.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise missing_extra("report", "matplotlib") from None
    return matplotlib

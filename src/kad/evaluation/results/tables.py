"""The summary as a terminal table, Markdown, CSV and JSON; one list of columns serves them all."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kad.evaluation.results.intervals import Interval
from kad.evaluation.results.summary import Row


@dataclass(frozen=True)
class Column:
    """A heading, and how to read the cell of a row. An empty cell is a dash. A narrow terminal shows `core` columns."""

    heading: str
    cell: Callable[[Row], str]
    numeric: bool = True
    core: bool = False


def _percent(metric: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        return _interval(row.accuracy[metric]) if metric in row.accuracy else "–"

    return cell


def _interval(interval: Interval) -> str:
    return f"{100 * interval.estimate:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _difference(metric: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        if row.versus_baseline is None or metric not in row.versus_baseline:
            return "–"
        found = row.versus_baseline[metric]
        shift = found.difference
        p_value = f"p={found.p_value:.3f}" if found.p_value >= 0.001 else "p<0.001"
        return f"{100 * shift.estimate:+.1f} [{100 * shift.low:+.1f}, {100 * shift.high:+.1f}] {p_value}"

    return cell


def _optional(read: Callable[[Row], float | None], style: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        value = read(row)
        return "–" if value is None else format(value, style)

    return cell


_FIRST = (
    Column("task", lambda row: row.task, numeric=False),
    Column("method", lambda row: row.method, numeric=False, core=True),
    Column("questions", lambda row: str(row.questions)),
)
_LAST = (
    Column("unfinished %", lambda row: f"{100 * row.unfinished:.1f}"),
    Column("tokens", lambda row: f"{row.tokens:.1f}"),
    Column("tok/s", _optional(lambda row: row.throughput, ".1f"), core=True),
    Column("acceptance rate", _optional(lambda row: row.acceptance_rate, ".3f")),
    Column("acceptance length", _optional(lambda row: row.acceptance_length, ".2f")),
    Column("acceptance β", _optional(lambda row: row.acceptance, ".3f")),
    Column("deferred mass α", _optional(lambda row: row.deferred_mass, ".3f")),
)


def markdown(rows: Sequence[Row]) -> str:
    """One Markdown table; columns that no row fills are left out."""
    columns = filled_columns(rows)
    head = [
        "| " + " | ".join(column.heading for column in columns) + " |",
        "|" + "|".join("---:" if column.numeric else "---" for column in columns) + "|",
    ]
    # A bar in a method's name would break the table.
    body = ["| " + " | ".join(column.cell(row).replace("|", "\\|") for column in columns) + " |" for row in rows]
    return "\n".join([*head, *body]) + "\n"


def terminal_table(rows: Sequence[Row], width: int) -> Any:
    """A Rich table for every task, as one renderable.

    Columns that no row fills are left out. A narrow terminal shows the `core` columns only. Where even these are too
    wide, a method's name takes several lines, with whole parameters.
    """
    from rich.console import Group
    from rich.table import Table

    tables = []
    for task in dict.fromkeys(row.task for row in rows):
        of_task = [row for row in rows if row.task == task]
        columns = [column for column in filled_columns(of_task) if column.heading != "task"]
        if _natural_width(columns, of_task) > width:
            columns = [column for column in columns if column.core]
        narrow = _natural_width(columns, of_task) > width
        table = Table(title=task, title_justify="left", header_style="bold")
        for column in columns:
            table.add_column(
                column.heading, justify="right" if column.numeric else "left", overflow="fold", no_wrap=column.numeric
            )
        for row in of_task:
            cells = [(column.cell(row), narrow and not column.numeric) for column in columns]
            table.add_row(*(re.sub("([:@,])", r"\1\n", cell) if broken else cell for cell, broken in cells))
        tables.append(table)
    return Group(*tables)


def _natural_width(columns: Sequence[Column], rows: Sequence[Row]) -> int:
    """The width in characters if no cell wraps, with padding and borders."""
    cells = [[column.heading, *(column.cell(row) for row in rows)] for column in columns]
    return sum(max(map(len, column)) + 3 for column in cells) + 1


def csv_text(rows: Sequence[Row]) -> str:
    """Plain numbers for other tools: one line a row, an empty cell where nothing was measured."""
    flat = [_flat(row) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def filled_columns(rows: Sequence[Row]) -> list[Column]:
    """The columns that say something about at least one row."""
    columns = (*_FIRST, *_of_metrics(rows), *_LAST)
    return [column for column in columns if any(column.cell(row) != "–" for row in rows)]


def _of_metrics(rows: Sequence[Row]) -> list[Column]:
    """Each metric, then its differences. A narrow terminal shows those that count for a task."""
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.accuracy))
    core = {next(iter(row.accuracy)) for row in rows}
    shares = [Column(f"{metric} %", _percent(metric), core=metric in core) for metric in metrics]
    return shares + [Column(f"{metric} vs baseline", _difference(metric), core=metric in core) for metric in metrics]


def _flat(row: Row) -> dict[str, Any]:
    flat: dict[str, Any] = {"task": row.task, "method": row.method, "questions": row.questions, "samples": row.samples}
    for metric, interval in row.accuracy.items():
        versus = None if row.versus_baseline is None else row.versus_baseline[metric]
        flat |= {f"{metric}": interval.estimate, f"{metric}_low": interval.low, f"{metric}_high": interval.high}
        flat |= {
            f"{metric}_difference": versus and versus.difference.estimate,
            f"{metric}_difference_low": versus and versus.difference.low,
            f"{metric}_difference_high": versus and versus.difference.high,
            f"{metric}_p_value": versus and versus.p_value,
        }
    plain = ("unfinished", "tokens", "throughput", "acceptance_rate", "acceptance_length", "acceptance")
    return flat | {name: getattr(row, name) for name in (*plain, "deferred_mass")}

"""The report of one run directory or of several, from one summary: Markdown, CSV, JSON and a terminal table.

One list of columns serves all tables.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kad.disk import write_atomically
from kad.errors import KadError, MissingExtraError, UsageError, one_line
from kad.evaluation.methods import window_of
from kad.evaluation.results.intervals import Interval
from kad.evaluation.results.plots import write_plots
from kad.evaluation.results.storage import Record, read_samples, read_sessions, read_settings
from kad.evaluation.results.summary import Row, choose_baseline, summarize, title_of
from kad.pair.presets import reported
from kad.words import counted

SCHEMA = "kad-report/2"


@dataclass(frozen=True)
class Report:
    """Rows, and where they come from.

    `notes` holds what a reader must know: that a run is not finished, that its sessions used different revisions, that
    the local SVAMP file has 1000 rows.
    """

    rows: list[Row]
    baseline: str
    runs: list[dict[str, Any]]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"schema": SCHEMA, **asdict(self)}

    def markdown(self) -> str:
        """Table, notes, and the commands that made it."""
        tasks = dict.fromkeys(row.task for row in self.rows)
        titles = (title_of([row for row in self.rows if row.task == task]) for task in tasks)
        lines = [
            *(f"{title}  " for title in titles),
            "",
            markdown(self.rows),
            f"Baseline of the differences: `{self.baseline}`. Intervals are 95 %.",
            "",
        ]
        lines += [f"- {note}" for note in self.notes]
        for run in self.runs:
            session = run["sessions"][-1] if run["sessions"] else {}
            lines.append(f"- `{session.get('command', '?')}` at {session.get('git')}, {_hardware(session)}")
        return "\n".join(lines) + "\n"


def build_report(folders: Sequence[Path], baseline: str | None = None) -> Report:
    """Read one run, or compare several. With several, the folder of the run stands before the name of a method.

    Raises:
        UsageError: a folder that is no run, a damaged one, no samples, an unknown baseline.
    """
    try:
        report = _report(folders, baseline)
        report.markdown()  # which reads the rest of the runs
    except KadError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        names = ", ".join(map(str, folders))
        raise UsageError(f"The run {names} is damaged: its files hold no such values ({one_line(error)}).") from error
    return report


def _report(folders: Sequence[Path], baseline: str | None) -> Report:
    runs = [{"folder": it.name, "settings": read_settings(it), "sessions": read_sessions(it)} for it in folders]
    records = list(records_of(folders))
    rows = summarize(records, baseline)
    notes = [note for run in runs for note in _notes(run, [r for r in records if r["run"] == run["folder"]])]
    name = choose_baseline([record["method"] for record in records], baseline)
    return Report(rows, name, runs, notes)


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write report.json, report.md, report.csv and the plots (where matplotlib is there) into `folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"Cannot write the report to {folder}: {error.strerror}. Choose another folder.") from error
    texts = {
        "report.json": json.dumps(report.to_dict(), indent=2) + "\n",
        "report.md": report.markdown(),
        "report.csv": csv_text(report.rows),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text)
    written = [folder / name for name in texts]
    try:
        return [*written, *write_plots(report.rows, folder)]
    except MissingExtraError as missing:
        report.notes.append(f"No plots: {missing}")
        return written


def records_of(folders: Sequence[Path]) -> Iterator[Record]:
    """The samples of the runs, each with its run, its method as the report names it, and what the papers report."""
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        raise UsageError(f"The runs to compare need distinct folder names, but got {', '.join(names)}.")
    for folder in folders:
        settings = read_settings(folder)
        models = settings["models"]
        drawn = {task["name"]: _drawn(settings, task) for task in settings["tasks"]}
        for record in read_samples(folder):
            method = f"{folder.name}/{record['method']}" if len(folders) > 1 else record["method"]
            known = reported(models, record["task"], record["method"])
            window = window_of(record["method"])
            more = {"reported": known, "window": window, "drawn": drawn.get(record["task"], "")}
            yield {**record, "method": method, "run": folder.name, **more}


def _drawn(settings: dict[str, Any], task: dict[str, Any]) -> str:
    """How the answers to a task were drawn, in words."""
    if task.get("scored"):
        return "options by their log-likelihood"
    own = settings.get("temperature")
    temperature = task.get("temperature", 1.0) if own is None else own
    before = settings.get("deferral_temperature", 1.0)
    divided = "" if before == 1.0 else f", deferral temperature {before:g}"
    return f"temperature {temperature:g}{divided}, {counted(settings['samples'], 'sample')} a question"


def _notes(run: dict[str, Any], records: Sequence[Record]) -> Iterator[str]:
    settings = run["settings"]
    answers = sum(task["rows"] * (1 if task.get("scored") else settings["samples"]) for task in settings["tasks"])
    total = len(settings["methods"]) * answers
    if len(records) < total:
        yield f"{run['folder']}: unfinished, {len(records)} of {total} samples; no differences until then"
    if settings.get("pair_rule") is not None:
        yield f"{run['folder']}: pair is {settings['pair_rule']}"
    if any(record["reported"] is not None for record in records):
        yield f"{run['folder']}: reported is what the papers' tables say, read second-hand"
    speculative = {"@speculative" in name for name in settings["methods"]}
    batch = settings.get("batch_size", 1)
    if len(speculative) > 1 and batch > 1 and settings.get("engine", "transformers") == "transformers":
        yield (
            f"{run['folder']}: plain decoding ran {batch} questions at once, speculation one; their tok/s cannot be "
            "compared. Measure both alike with --batch-size 1"
        )
    revisions = {session.get("git") for session in run["sessions"]}
    if len(revisions) > 1:
        yield f"{run['folder']}: resumed with another revision of the code: {', '.join(sorted(map(str, revisions)))}"
    for task in settings["tasks"]:
        if task["name"] == "kad_svamp":
            kind = "the hub's test split" if task["source"] == "hub" else "a local file (SVAMP in full has 1000 rows)"
            yield f"{run['folder']}: SVAMP, {task['rows']} rows from {kind}; the published figures use the hub's 300"


def _hardware(session: dict[str, Any]) -> str:
    hardware = session.get("hardware", {})
    gpus = ", ".join(hardware.get("gpus", []))
    versions = session.get("versions", {})
    software = [f"{name} {versions[name]}" for name in ("torch", "transformers", "lm-eval") if name in versions]
    return f"{gpus or hardware.get('processor', '?')}, {hardware.get('threads', '?')} threads, {', '.join(software)}"


@dataclass(frozen=True)
class Column:
    """A heading, and how to read the cell of a row. An empty cell is a dash. A narrow terminal shows `core` columns."""

    heading: str
    cell: Callable[[Row], str]
    numeric: bool = True
    core: bool = False


def _percent(metric: str, row: Row) -> str:
    return _interval(row.accuracy[metric], "") if metric in row.accuracy else "–"


def _interval(interval: Interval, sign: str) -> str:
    low, estimate, high = (f"{100 * value:{sign}.1f}" for value in (interval.low, interval.estimate, interval.high))
    return f"{estimate} [{low}, {high}]"


def _difference(metric: str, row: Row) -> str:
    comparison = (row.versus_baseline or {}).get(metric)
    if comparison is None:
        return "–"
    p_value = f"p={comparison.p_value:.3f}" if comparison.p_value >= 0.001 else "p<0.001"
    return f"{_interval(comparison.difference, '+')} {p_value}"


def _optional(field: str, style: str, row: Row) -> str:
    value = getattr(row, field)
    return "–" if value is None else format(value, style)


_FIRST = (
    Column("task", lambda row: row.task, numeric=False),
    Column("method", lambda row: row.method, numeric=False, core=True),
    Column("questions", lambda row: str(row.questions)),
)
_REPORTED = (
    Column("reported %", lambda row: "–" if row.reported is None else f"{100 * row.reported:.1f}"),
    Column("paper − reported", lambda row: "–" if row.versus_reported is None else _interval(row.versus_reported, "+")),
)
_LAST = (
    Column("unfinished %", lambda row: f"{100 * row.unfinished:.1f}"),
    Column("tokens", lambda row: f"{row.tokens:.1f}"),
    Column("tok/s", partial(_optional, "throughput", ".1f"), core=True),
    Column("acceptance rate", partial(_optional, "acceptance_rate", ".3f")),
    Column("accepted / W", partial(_optional, "acceptance_of_window", ".3f")),
    Column("acceptance length", partial(_optional, "acceptance_length", ".2f")),
    Column("acceptance β", partial(_optional, "acceptance", ".3f")),
    Column("deferred mass α", partial(_optional, "deferred_mass", ".3f")),
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

    Columns that no row fills are left out. A narrow terminal shows the `core` columns and every metric, a narrower one
    the `core` columns only. Where even these are too wide, a method's name takes several lines, with whole parameters.
    """
    from rich.console import Group
    from rich.table import Table

    tables = []
    for task in dict.fromkeys(row.task for row in rows):
        of_task = [row for row in rows if row.task == task]
        columns = [column for column in filled_columns(of_task) if column.heading != "task"]
        metrics = {f"{metric} %" for row in of_task for metric in row.accuracy}
        fewer = [column for column in columns if column.core or column.heading in metrics]
        if _natural_width(columns, of_task) > width:
            columns = fewer if _natural_width(fewer, of_task) <= width else [it for it in columns if it.core]
        narrow = _natural_width(columns, of_task) > width
        table = Table(title=title_of(of_task), title_justify="left", header_style="bold")
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
    """The columns that say something about at least one row. A narrow terminal shows the metrics that count."""
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.accuracy))
    core = {next(iter(row.accuracy)) for row in rows}
    of_metrics = [
        Column(f"{metric} {what}", partial(cell, metric), core=metric in core)
        for what, cell in (("%", _percent), ("vs baseline", _difference))
        for metric in metrics
    ]
    columns = (*_FIRST, *of_metrics, *_REPORTED, *_LAST)
    return [column for column in columns if any(column.cell(row) != "–" for row in rows)]


def _flat(row: Row) -> dict[str, Any]:
    flat: dict[str, Any] = {name: getattr(row, name) for name in ("task", "method", "questions", "samples")}
    for metric, interval in row.accuracy.items():
        versus = None if row.versus_baseline is None else row.versus_baseline[metric]
        flat |= {
            metric: interval.estimate,
            f"{metric}_low": interval.low,
            f"{metric}_high": interval.high,
            f"{metric}_difference": versus and versus.difference.estimate,
            f"{metric}_difference_low": versus and versus.difference.low,
            f"{metric}_difference_high": versus and versus.difference.high,
            f"{metric}_p_value": versus and versus.p_value,
        }
    if row.versus_reported is not None:
        apart = row.versus_reported
        flat |= {"reported": row.reported, "reported_difference": apart.estimate}
        flat |= {"reported_difference_low": apart.low, "reported_difference_high": apart.high}
    costs = ("unfinished", "tokens", "throughput", "acceptance_rate", "acceptance_of_window", "acceptance_length")
    return flat | {name: getattr(row, name) for name in (*costs, "acceptance", "deferred_mass")}

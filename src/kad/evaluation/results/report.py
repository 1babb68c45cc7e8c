"""The report of one run directory or of several: every format from one summary."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kad.disk import write_atomically
from kad.errors import MissingExtraError, UsageError
from kad.evaluation.results import tables
from kad.evaluation.results.plots import write_plots
from kad.evaluation.results.storage import Record, read_samples, read_sessions, read_settings
from kad.evaluation.results.summary import Row, choose_baseline, summarize

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
        return {
            "schema": SCHEMA,
            "baseline": self.baseline,
            "rows": [row.to_dict() for row in self.rows],
            "runs": self.runs,
            "notes": self.notes,
        }

    def markdown(self) -> str:
        """Table, notes, and the commands that made it."""
        lines = [tables.markdown(self.rows), f"Baseline of the differences: `{self.baseline}`. Intervals are 95 %.", ""]
        lines += [f"- {note}" for note in self.notes]
        for run in self.runs:
            session = run["sessions"][-1] if run["sessions"] else {}
            lines.append(f"- `{session.get('command', '?')}` at {session.get('git')}, {_hardware(session)}")
        return "\n".join(lines) + "\n"


def build_report(folders: Sequence[Path], baseline: str | None = None) -> Report:
    """Read one run, or compare several. With several, the folder of the run stands before the name of a method.

    Raises:
        UsageError: a folder that is no run, no samples, an unknown baseline.
    """
    runs = [
        {"folder": folder.name, "settings": read_settings(folder), "sessions": read_sessions(folder)}
        for folder in folders
    ]
    records = list(_records(folders))
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
        "report.csv": tables.csv_text(report.rows),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text)
    written = [folder / name for name in texts]
    try:
        return [*written, *write_plots(report.rows, folder)]
    except MissingExtraError as missing:
        report.notes.append(f"No plots: {missing}")
        return written


def _records(folders: Sequence[Path]) -> Iterator[Record]:
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        raise UsageError(f"The runs to compare need distinct folder names, but got {', '.join(names)}.")
    for folder in folders:
        for record in read_samples(folder):
            method = f"{folder.name}/{record['method']}" if len(folders) > 1 else record["method"]
            yield {**record, "method": method, "run": folder.name}


def _notes(run: dict[str, Any], records: Sequence[Record]) -> Iterator[str]:
    settings = run["settings"]
    answers = sum(task["rows"] * (1 if task.get("scored") else settings["samples"]) for task in settings["tasks"])
    wanted = len(settings["methods"]) * answers
    if len(records) < wanted:
        yield f"{run['folder']}: unfinished, {len(records)} of {wanted} samples; no differences until then"
    if settings.get("pair_rule") is not None:
        yield f"{run['folder']}: pair is {settings['pair_rule']}"
    speculative = {"@" in name for name in settings["methods"] if not name.startswith("oracle=")}
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
    software = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "transformers", "lm-eval") if name in versions
    )
    return f"{gpus or hardware.get('processor', '?')}, {hardware.get('threads', '?')} threads, {software}"

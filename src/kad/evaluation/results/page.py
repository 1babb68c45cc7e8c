"""The report as one page that works offline: tables, plots, and every question with the answers of all methods."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kad import __version__
from kad.errors import KadError, MissingExtraError, UsageError, one_line
from kad.evaluation.methods import Method, parse_method
from kad.evaluation.results.plots import write_plots
from kad.evaluation.results.storage import Record
from kad.evaluation.results.summary import metrics_of
from kad.evaluation.results.tables import Report, filled_columns, records_of
from kad.method.rules import parse_rule
from kad.pair.base_prompt import BasePrompt
from kad.pair.sources import TINY_MODELS
from kad.tracing.page import fill, script_safe

_ASSETS = files("kad.evaluation") / "assets"
_PLACES = ("pair", "base", "aligned", "reference")


def report_page(report: Report, folders: Sequence[Path]) -> str:
    """A page with the tables and plots of a report, and the answers of its runs.

    It loads nothing, and its content security policy forbids loading. What models and tasks say reaches it only as JSON
    without any `<`; the script shows it as text. Plots are images, in which nothing runs.

    Raises:
        UsageError: a run is damaged.
    """
    try:
        text = json.dumps(_data(report, folders), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, KadError):
            raise
        names = ", ".join(map(str, folders))
        raise UsageError(f"The run {names} is damaged: its files hold no such values ({one_line(error)}).") from error

    def own(name: str) -> str:
        return (_ASSETS / name).read_text(encoding="utf-8")

    title = " · ".join(["kad report", *(folder.name for folder in folders)])
    return fill(title, own("report.html"), own("report.js"), style=own("report.css"), data=script_safe(text))


def _data(report: Report, folders: Sequence[Path]) -> dict[str, Any]:
    several = len(folders) > 1
    runs = {run["folder"]: run for run in report.runs}
    methods: dict[str, dict[str, Any]] = {}
    tasks: dict[str, list[str]] = {}
    systems: dict[str, int] = {}
    questions: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records_of(folders):
        name, task, run = record["method"], record["task"], runs[record["run"]]
        if name not in methods:
            own = name.removeprefix(f"{record['run']}/") if several else name
            methods[name] = {"name": name, **_traced(own, run)}
        metrics = tasks.setdefault(task, list(metrics_of(record["marks"])))
        key = (task, str(record["question"]))
        if key not in questions:
            number = list(tasks).index(task)
            questions[key] = {"task": number, "id": key[1], "answers": [], **_question(record, systems)}
        text = str(record["text"])
        questions[key]["answers"].append({
            "method": list(methods).index(name), "sample": record["sample"], "text": text,
            "marks": [float(record["marks"][metric]) for metric in metrics], "tokens": int(record["tokens"]),
            "finished": bool(record["finished"]),
            "origins": _origins(text, record.get("origins"), methods[name]["alone"]),
        })  # fmt: skip
    for question in questions.values():
        question["answers"].sort(key=lambda answer: (answer["method"], answer["sample"]))
    plots, notes = _plots(report), [*report.notes, *(_command(run) for run in report.runs)]
    return {
        "version": __version__,
        "tables": _tables(report),
        "notes": [f"Baseline of the differences: {report.baseline}. Intervals are 95 %.", *notes],
        "plots": plots,
        "tasks": [{"name": name, "metrics": metrics} for name, metrics in tasks.items()],
        "methods": list(methods.values()),
        "systems": list(systems),
        "questions": sorted(questions.values(), key=lambda question: (question["task"], question["id"])),
    }


def _tables(report: Report) -> list[dict[str, Any]]:
    tables = []
    for task in dict.fromkeys(row.task for row in report.rows):
        rows = [row for row in report.rows if row.task == task]
        columns = [column for column in filled_columns(rows) if column.heading != "task"]
        heads = [{"heading": column.heading, "numeric": column.numeric} for column in columns]
        tables.append({"task": task, "columns": heads, "rows": [[c.cell(row) for c in columns] for row in rows]})
    return tables


def _plots(report: Report) -> list[dict[str, str]]:
    """The plots as images that a page holds itself. Without matplotlib there are none, and a note says so."""
    with TemporaryDirectory() as place:
        try:
            paths = write_plots(report.rows, Path(place))
        except MissingExtraError as missing:
            report.notes.append(f"No plots: {missing}")
            return []
        return [
            {
                "title": path.stem.replace("-", " "),
                "source": f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}",
            }
            for path in paths
        ]


def _command(run: Mapping[str, Any]) -> str:
    session = run["sessions"][-1] if run["sessions"] else {}
    return f"{run['folder']}: {session.get('command', '?')}, at {session.get('git')}"


def _question(record: Record, systems: dict[str, int]) -> dict[str, Any]:
    """What was asked, and how `kad trace` would ask it."""
    messages = record.get("conversation") or [{"role": "user", "content": record["prompt"]}]
    said = {message["role"]: str(message["content"]) for message in messages}
    asked = said.get("user", "")
    system = said.get("system")
    return {
        "asked": asked,
        "expected": str(record["answer"]),
        "system": None if system is None else systems.setdefault(system, len(systems)),
        "raw": record["prompt"] == asked,
        "single": len(messages) == len(said) and said.keys() <= {"system", "user"} and "conversation" in record,
    }


def _origins(text: str, stretches: Any, alone: float | None) -> list[tuple[int, float]] | None:
    """Who wrote which part of a text, in the units of JavaScript's texts. None where it is not known."""
    if alone is not None:
        return [(_units(text), alone)]
    if stretches is None:
        return None
    found, start = [], 0
    for length, share in stretches:
        found.append((_units(text[start : start + length]), float(share)))
        start += length
    return [stretch for stretch in found if stretch[0]]


def _units(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def _traced(name: str, run: Mapping[str, Any]) -> dict[str, Any]:
    """How `kad trace` composes what a method is, as far as the run says; and whose all of its text is."""
    settings = run["settings"]
    try:
        own = settings.get("pair_rule")
        method = parse_method(name, None if own is None else parse_rule(own))
    except KadError:  # a rule of a package that is not here
        method = Method("oracle")
    alone = {"base": 1.0, "aligned": 0.0}.get(method.role)
    rules = {"aligned": "aligned_only", "base": None if method.by_template else "base_only"}
    rule = rules.get(method.role) if method.rule is None else str(method.rule)
    temperature, prompt = settings.get("deferral_temperature", 1.0), settings.get("base_prompt")
    more = [] if temperature == 1.0 else [("deferral-temperature", temperature)]
    if prompt is not None and (named := BasePrompt.named(BasePrompt.written(prompt))) is not None:
        more.append(("base-prompt", named))
    places = _models(run, method.rule is not None and method.rule.needs_reference)
    return {"rule": rule, "alone": alone, "models": places, "more": more}


def _models(run: Mapping[str, Any], with_reference: bool) -> list[tuple[str, str]] | None:
    """The options that name the run's models: those of its command, else the hub's names; None if neither says."""
    given = _given(run["sessions"][-1].get("command", "")) if run["sessions"] else {}
    if "base" in given:
        return list(given.items())
    if "pair" in given:  # only a run adds a reference model to a pair
        return None if with_reference and "reference" in given else [("pair", given["pair"])]
    models = {role: str(place) for role, place in run["settings"]["models"].items()}
    if models.get("base", "").partition(":")[0] == TINY_MODELS[0]:
        return [("pair", "tiny")]
    named = [(role, models[role]) for role in _PLACES[1:] if ":" not in models.get(role, ":")]
    return named if {"base", "aligned"} <= dict(named).keys() else None


def _given(command: Any) -> dict[str, str]:
    """Which models a command names, by option."""
    try:
        words = shlex.split(str(command))
    except ValueError:
        return {}
    found = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in _PLACES:
            found[name] = value if equals else following
    return found

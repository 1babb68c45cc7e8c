"""The report: numbers that can be checked by hand, in every format."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kad.errors import UsageError
from kad.evaluation.results import tables
from kad.evaluation.results.settings import Settings
from kad.evaluation.results.storage import RunDirectory
from kad.evaluation.results.summary import summarize
from kad.evaluation.results.tables import build_report, write_report
from kad.evaluation.tasks.task import TaskInfo


def record(method: str, question: int, strict: float, **changes: Any) -> dict[str, Any]:
    return {
        "method": method,
        "task": "kad_svamp",
        "question": f"{question:05d}",
        "sample": 0,
        "marks": {"strict": strict, "paper": 1.0},
        "tokens": 10,
        "seconds": 0.5,
        "finished": True,
        "drafted": None,
        "accepted": None,
        "acceptance_lengths": {},
        "deferred_mass": None,
        "acceptance": None,
    } | changes


RECORDS = [record("aligned", index, float(index < 2)) for index in range(8)] + [
    record(
        "dual@speculative",
        index,
        float(index < 6),
        tokens=10 * (index + 1),
        seconds=1.0,
        finished=index != 7,
        drafted=8,
        accepted=index,
        acceptance_lengths={"0": 1, str(index): 1},
        deferred_mass=0.1 if index == 0 else 0.2,
        acceptance=0.9,
    )
    for index in range(8)
]


def write_run(folder: Path, records: list[dict[str, Any]], rows: int = 8) -> Path:
    task = TaskInfo("kad_svamp", rows, "test", "local file", False, 1024, 1.0, "abc")
    methods = tuple(dict.fromkeys(r["method"] for r in records))
    with RunDirectory(folder, Settings(models={}, methods=methods, tasks=(task,))) as directory:
        directory.log_session(
            {"command": "kad eval", "git": "abc", "versions": {"torch": "2"}, "hardware": {"threads": 1}}
        )
        directory.append(records)
    return folder


def test_rows_by_hand() -> None:
    aligned, dual = summarize(RECORDS)
    assert (aligned.method, aligned.versus_baseline, aligned.acceptance_rate) == ("aligned", None, None)
    assert aligned.accuracy["strict"].estimate == pytest.approx(2 / 8)
    assert dual.accuracy["strict"].estimate == pytest.approx(6 / 8)
    assert dual.versus_baseline is not None
    strict = dual.versus_baseline["strict"]
    assert (strict.wins, strict.losses, strict.difference.estimate) == (4, 0, pytest.approx(0.5))
    assert strict.p_value == pytest.approx(2 / 2**4)
    assert dual.unfinished == pytest.approx(1 / 8)
    assert dual.tokens == pytest.approx(45)
    assert dual.throughput == pytest.approx(360 / 8)
    assert dual.acceptance_rate == pytest.approx(28 / 64)
    # Fifteen windows: eight of length 0 and one each of 1 to 7.
    assert dual.acceptance_histogram == pytest.approx({0: 8 / 15, **dict.fromkeys(range(1, 8), 1 / 15)})
    assert dual.acceptance_length == pytest.approx(28 / 15)
    assert dual.deferred_mass == pytest.approx((0.1 * 10 + 0.2 * 350) / 360)
    assert dual.acceptance == pytest.approx(0.9)
    assert dual.acceptance_of_window is None


def test_reported_accuracies_stand_beside_the_measured_ones(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", RECORDS)
    settings = json.loads((run / "settings.json").read_text())
    models = {"base": "Qwen/Qwen3-14B-Base", "aligned": "Qwen/Qwen3-1.7B"}
    (run / "settings.json").write_text(json.dumps(settings | {"models": models}))
    report = build_report([run])
    aligned = report.rows[0]
    assert aligned.reported == pytest.approx(0.866)
    assert aligned.versus_reported is not None
    assert aligned.versus_reported.estimate == pytest.approx(1 - 0.866)
    assert aligned.versus_reported.low < 0 < aligned.versus_reported.high  # eight questions
    assert report.rows[1].acceptance_of_window == pytest.approx(28 / 15 / 8)
    text = report.markdown()
    assert "| reported % | paper − reported |" in text
    assert "| 86.6 | +13.4 [" in text
    assert "read second-hand" in text


def test_the_baseline_can_be_chosen_and_must_exist() -> None:
    aligned, dual = summarize(RECORDS, "dual@speculative")
    assert dual.versus_baseline is None
    assert aligned.versus_baseline is not None
    assert aligned.versus_baseline["strict"].difference.estimate == pytest.approx(-0.5)
    with pytest.raises(
        UsageError, match="The baseline 'base' is not among the methods. Choose from: aligned, dual@speculative"
    ):
        summarize(RECORDS, "base")
    with pytest.raises(UsageError, match="no finished samples"):
        summarize([])


def test_an_unfinished_run_has_no_differences_and_says_so(tmp_path: Path) -> None:
    report = build_report([write_run(tmp_path / "half", RECORDS[:12])])
    assert report.rows[1].versus_baseline is None
    assert any("unfinished, 12 of 16 samples" in note for note in report.notes)


def test_every_format_tells_the_same(tmp_path: Path) -> None:
    report = build_report([write_run(tmp_path / "run", RECORDS)])
    written = {path.name for path in write_report(report, tmp_path / "report")}
    assert written == {
        "report.json",
        "report.md",
        "report.csv",
        "kad_svamp-accuracy-throughput.svg",
        "kad_svamp-acceptance.svg",
    }
    stored = json.loads((tmp_path / "report" / "report.json").read_text())
    assert stored["rows"][1]["accuracy"]["strict"]["estimate"] == 0.75
    flat = list(csv.DictReader(io.StringIO((tmp_path / "report" / "report.csv").read_text())))
    assert (flat[1]["strict"], flat[1]["strict_p_value"], flat[0]["acceptance_rate"]) == ("0.75", "0.125", "")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| dual@speculative | 8 | 75.0 [40.9, 92.9] |" in text
    assert "SVAMP, 8 rows from a local file (SVAMP in full has 1000 rows)" in text
    assert "`kad eval` at abc" in text
    for width, shows_tokens in ((120, False), (260, True)):
        console = Console(record=True, width=width, file=io.StringIO())
        console.print(tables.terminal_table(report.rows, width))
        shown = console.export_text()
        assert "dual@speculative" in shown
        assert "75.0 [40.9, 92.9]" in shown
        assert ("tokens" in shown) == shows_tokens


def test_the_title_says_how_the_answers_were_drawn(tmp_path: Path) -> None:
    """In the terminal, in Markdown and in every plot; a terminal of medium width has every metric."""
    report = build_report([write_run(tmp_path / "run", RECORDS)])
    title = "kad_svamp: temperature 1, 1 sample a question"
    console = Console(record=True, width=106, file=io.StringIO())
    console.print(tables.terminal_table(report.rows, 106))
    shown = console.export_text()
    assert shown.startswith(title)
    assert "strict %" in shown
    assert "paper %" in shown
    assert report.markdown().startswith(title)
    write_report(report, tmp_path / "report")
    plots = list((tmp_path / "report").glob("*.svg"))
    assert len(plots) == 2
    assert all(f"<!-- {title} -->" in plot.read_text(encoding="utf-8") for plot in plots)
    scored = TaskInfo("kad_svamp", 8, "test", "local file", False, 1024, 1.0, "abc", scored=True)
    drawn = {"settings": {"samples": 4, "temperature": 0.0, "deferral_temperature": 0.7}, "task": asdict(scored)}
    assert tables._drawn(**drawn) == "options by their log-likelihood"
    drawn["task"]["scored"] = False
    assert tables._drawn(**drawn) == "temperature 0, deferral temperature 0.7, 4 samples a question"


def test_a_long_method_in_a_narrow_table_keeps_its_parameters_whole() -> None:
    records = [one | {"method": "dual:threshold=0.4@speculative:num_draft_tokens=4"} for one in RECORDS[:8]]
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(tables.terminal_table(summarize([*RECORDS, *records]), 80))
    shown = console.export_text()
    for part in ("dual:", "threshold=0.4@", "speculative:"):
        assert f"│ {part} " in shown


def test_plots_are_reproducible(tmp_path: Path) -> None:
    report = build_report([write_run(tmp_path / "run", RECORDS)])
    for name in ("one", "two"):
        write_report(report, tmp_path / name)
    for path in (tmp_path / "one").glob("*.svg"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_columns_that_nobody_fills_are_left_out() -> None:
    headings = [column.heading for column in tables.filled_columns(summarize(RECORDS[:8]))]
    assert "acceptance rate" not in headings
    assert "strict %" in headings


def test_runs_side_by_side(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, RECORDS) for name in ("first", "second")]
    report = build_report(folders, "first/aligned")
    assert [row.method for row in report.rows] == [
        "first/aligned",
        "first/dual@speculative",
        "second/aligned",
        "second/dual@speculative",
    ]
    assert report.rows[2].versus_baseline is not None
    assert report.rows[2].versus_baseline["strict"].p_value == 1.0
    with pytest.raises(UsageError, match="distinct folder names"):
        build_report([folders[0], folders[0]])


def test_a_task_has_metrics_of_its_own() -> None:
    """Two tasks with other metrics in one table: a dash where a task has no such metric."""
    facts = [
        record("aligned", index, 0.0, task="kad_facts", marks={"right": 1.0, "behaves": 0.0}) for index in range(4)
    ]
    rows = summarize([*RECORDS[:8], *facts])
    head, _, *body = tables.markdown(rows).splitlines()
    cells = [dict(zip(head.split(" | "), line.split(" | "), strict=True)) for line in body]
    assert cells[0]["strict %"].startswith("25.0 [")
    assert cells[0]["right %"] == cells[1]["strict %"] == "–"
    assert (cells[1]["right %"][:5], cells[1]["behaves %"][:3]) == ("100.0", "0.0")
    flat = list(csv.DictReader(io.StringIO(tables.csv_text(rows))))
    assert (flat[0]["right"], flat[1]["right"], flat[1]["strict"]) == ("", "1.0", "")

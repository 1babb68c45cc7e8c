"""What an earlier version of kad wrote, read today, or refused in one sentence. golden/old was written by 0.1.0."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kad.cli.main import app
from kad.errors import UsageError
from kad.evaluation.results.report import build_report
from kad.evaluation.results.storage import read_samples, read_settings
from kad.tracing.schema import Trace

OLD = Path(__file__).parent / "golden" / "old"


def test_an_old_run_is_reported_in_todays_words() -> None:
    report = build_report([OLD / "run"])
    rows = {row.method: row for row in report.rows}
    stored = [json.loads(line) for line in (OLD / "run" / "samples.jsonl").read_text("utf-8").splitlines()]
    of_dual = [record for record in stored if record["method"] == "dual:threshold=0.4"]
    mean = sum(record["tokens"] * record["expected_acceptance"] for record in of_dual)
    assert rows["dual:threshold=0.4"].acceptance == pytest.approx(mean / sum(record["tokens"] for record in of_dual))
    assert rows["aligned"].acceptance is None
    assert report.to_dict()["schema"] == "kad-report/2"
    assert report.runs[0]["settings"]["schema"] == "kad-run/1"
    assert all("expected_acceptance" not in record for record in read_samples(OLD / "run"))


def test_an_old_run_is_not_resumed(tmp_path: Path) -> None:
    shutil.copytree(OLD / "run", tmp_path / "run")
    before = (tmp_path / "run" / "samples.jsonl").read_bytes()
    done = CliRunner().invoke(app, ["eval", "--limit", "2", "--out", str(tmp_path / "run")])
    assert done.exit_code == 2
    assert "made by an earlier version of kad: kad report reads it, but it cannot go on." in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert (tmp_path / "run" / "samples.jsonl").read_bytes() == before


def test_a_run_of_a_later_version_is_refused(tmp_path: Path) -> None:
    shutil.copytree(OLD / "run", tmp_path / "run")
    settings = tmp_path / "run" / "settings.json"
    settings.write_text(json.dumps({"schema": "kad-run/9", **json.loads(settings.read_text("utf-8"))}))
    with pytest.raises(UsageError, match="schema 'kad-run/9', but this version of kad reads 'kad-run/2' and older"):
        read_settings(tmp_path / "run")


@pytest.mark.parametrize("text", ["", "{", "[1]", "\0\0"])
def test_damaged_settings_are_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(UsageError, match=r"settings\.json is damaged"):
        read_settings(tmp_path)


@pytest.mark.parametrize("line", [b"garbage", b"\0\0\0", b"{}", b"[]", b'{"method": "x"}', b"\xff"])
def test_a_damaged_sample_is_named_with_its_line(line: bytes, tmp_path: Path) -> None:
    good = (OLD / "run" / "samples.jsonl").read_bytes().splitlines(keepends=True)[0]
    (tmp_path / "samples.jsonl").write_bytes(good + line + b"\n" + good)
    with pytest.raises(UsageError, match=r"samples\.jsonl, line 2 is no sample of a run"):
        list(read_samples(tmp_path))


def test_an_old_trace_is_read_shown_and_written_in_todays_words(tmp_path: Path) -> None:
    stored = json.loads((OLD / "trace.json").read_text("utf-8"))
    assert stored["schema"] == "kad-trace/1"
    trace = Trace.from_dict(stored)
    for position, old in zip(trace.positions, stored["positions"], strict=True):
        today = (position.p, position.p_aligned, position.pi, position.base_share, position.deferred_mass)
        assert today == tuple(old[name] for name in ("p", "q", "pi", "share_base", "alpha"))
        assert position.acceptance == old["acceptance"]
    done = CliRunner().invoke(app, ["trace", str(OLD / "trace.json"), "--out", str(tmp_path / "new.json")])
    assert done.exit_code == 0
    new = json.loads((tmp_path / "new.json").read_text("utf-8"))
    assert new["schema"] == "kad-trace/3"
    assert new["summary"]["mean_deferred_mass"] == stored["summary"]["mean_alpha"]
    assert Trace.from_dict(new) == trace


@pytest.mark.parametrize(("schema", "draft"), [("kad-trace/1", "drafted"), ("kad-trace/2", "rejected_draft")])
def test_a_token_after_a_rejected_draft_is_called_corrected(schema: str, draft: str) -> None:
    old = json.loads((OLD / "trace.json").read_text("utf-8")) | {"schema": schema}
    for position in old["positions"]:
        position.pop("drafted", None)
    old["positions"][2] |= {"event": "rejected", draft: 5}
    trace = Trace.from_dict(old)
    assert (trace.positions[2].event, trace.positions[2].rejected_draft) == ("corrected", 5)
    assert trace.summary()["corrected"] == 1
    assert Trace.from_json(trace.to_json()) == trace


def test_a_trace_of_a_later_version_is_refused(tmp_path: Path) -> None:
    later = json.loads((OLD / "trace.json").read_text("utf-8")) | {"schema": "kad-trace/9"}
    (tmp_path / "later.json").write_text(json.dumps(later))
    done = CliRunner().invoke(app, ["trace", str(tmp_path / "later.json")])
    assert done.exit_code == 2
    assert "schema 'kad-trace/9', but 'kad-trace/3' is wanted" in done.stderr

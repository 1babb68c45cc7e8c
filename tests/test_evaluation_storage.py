"""The run directory: nothing lost, nothing twice, whatever the last write left behind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kad.errors import UsageError
from kad.evaluation.results.settings import Settings, git_revision, session
from kad.evaluation.results.storage import RunDirectory, differences, key_of, read_samples, read_settings
from kad.evaluation.tasks.task import TaskInfo

TASK = TaskInfo("kad_tiny", 5, "held-out", "embedded", False, 64, 1.0, "abc")
SETTINGS = Settings(models={"base": "b"}, methods=("base",), tasks=(TASK,))


def record(index: int) -> dict[str, object]:
    return {"method": "base", "task": "kad_tiny", "question": f"{index:05d}", "sample": 0, "text": "né \n {" * index}


def test_appended_samples_come_back(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, SETTINGS) as directory:
        directory.append([record(0), record(1)])
        directory.append([record(1), record(2)])
    assert list(read_samples(tmp_path)) == [record(0), record(1), record(2)]
    with RunDirectory(tmp_path, SETTINGS) as directory:
        assert directory.done == {key_of(record(index)) for index in range(3)}


def test_a_write_torn_at_any_byte_costs_that_sample_alone(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, SETTINGS) as directory:
        directory.append([record(0), record(1), record(2)])
    file = tmp_path / "samples.jsonl"
    whole = file.read_bytes()
    first_two = whole[: whole.rindex(b"\n", 0, -1) + 1]
    for length in range(len(first_two), len(whole)):
        file.write_bytes(whole[:length])
        with RunDirectory(tmp_path, SETTINGS) as directory:
            assert directory.done == {key_of(record(0)), key_of(record(1))}
            directory.append([record(2)])
        assert file.read_bytes() == whole


def test_a_torn_line_longer_than_a_block_is_cut(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, SETTINGS) as directory:
        directory.append([record(0)])
    file = tmp_path / "samples.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b"x" * 200_000)
    with RunDirectory(tmp_path, SETTINGS):
        assert file.read_bytes() == whole
    file.write_bytes(b"x" * 200_000)
    with RunDirectory(tmp_path, SETTINGS):
        assert file.read_bytes() == b""


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (replace(SETTINGS, seed=1), "seed was 0, now 1"),
        (replace(SETTINGS, methods=("base", "aligned")), r'methods was \["base"\], now \["base", "aligned"\]'),
        (replace(SETTINGS, tasks=(replace(TASK, data_sha256="def"),)), 'tasks.0.data_sha256 was "abc", now "def"'),
        (replace(SETTINGS, temperature=0.0), "temperature was null, now 0.0"),
    ],
)
def test_changed_settings_are_refused(tmp_path: Path, changed: Settings, words: str) -> None:
    with RunDirectory(tmp_path, SETTINGS) as directory:
        directory.append([record(0)])
    with pytest.raises(UsageError, match=words), RunDirectory(tmp_path, changed):
        pass
    assert read_settings(tmp_path) == SETTINGS.to_dict()


def test_two_runs_cannot_share_a_directory(tmp_path: Path) -> None:
    with (
        RunDirectory(tmp_path, SETTINGS),
        pytest.raises(UsageError, match="in use by another run"),
        RunDirectory(tmp_path, SETTINGS),
    ):
        pass
    with RunDirectory(tmp_path, SETTINGS):
        pass


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no run directory: it has no settings\.json"):
        read_settings(tmp_path)
    (tmp_path / "samples.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match=r"samples without settings\.json"), RunDirectory(tmp_path, SETTINGS):
        pass


def test_differences_name_the_leaf() -> None:
    assert list(differences({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}], "c": 0})) == [
        "a.1.b was 2, now 3",
        "c was null, now 0",
    ]


def test_a_session_says_where_and_how() -> None:
    noted = session(["/somewhere/bin/kad", "eval", "--methods", "base;aligned"])
    assert noted["command"] == "kad eval --methods 'base;aligned'"
    assert noted["versions"]["torch"]
    assert noted["hardware"]["cores"] >= 1
    assert json.loads(json.dumps(noted)) == noted


def test_git_revision_is_of_the_source_tree(tmp_path: Path) -> None:
    assert git_revision(tmp_path) is None


def test_a_run_of_another_version_is_refused(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, SETTINGS):
        pass
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(json.loads(settings.read_text("utf-8")) | {"schema": "kad-run/9"}))
    with pytest.raises(UsageError, match="schema 'kad-run/9', but this version of kad reads 'kad-run/2'"):
        read_settings(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\0\0"])
def test_damaged_settings_are_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(UsageError, match=r"settings\.json is damaged"):
        read_settings(tmp_path)


@pytest.mark.parametrize("line", [b"garbage", b"\0\0\0", b"{}", b"[]", b'{"method": "x"}', b"\xff"])
def test_a_damaged_sample_is_named_with_its_line(line: bytes, tmp_path: Path) -> None:
    good = json.dumps(record(0)).encode() + b"\n"
    (tmp_path / "samples.jsonl").write_bytes(good + line + b"\n" + good)
    with pytest.raises(UsageError, match=r"samples\.jsonl, line 2 is no sample of a run"):
        list(read_samples(tmp_path))

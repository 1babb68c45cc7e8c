"""Files are whole or not at all, errors name them, and nothing that a killed process left stays for ever."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

import kad
from kad.cli.main import app
from kad.disk import scratch, whole, write_atomically


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process may be longer than 64 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_cannot_be_written_stays_as_it_was_and_is_named(tmp_path: Path) -> None:
    file = tmp_path / "report.md"
    write_atomically(file, "old")
    with full_disk(), pytest.raises(OSError) as caught:
        write_atomically(file, "new" * 100)
    assert caught.value.filename == str(file)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("report.md", "old")]


@pytest.mark.parametrize("name", ["trace.html", "trace.json"])
def test_a_full_disk_loses_no_trace_and_leaves_no_half(name: str, tmp_path: Path) -> None:
    trace = kad.trace(kad.load(), "Ann has 5 pens.", "She has 5.")
    trace.save(tmp_path / "old.json")
    (tmp_path / name).write_text("old")
    with full_disk():
        done = CliRunner().invoke(app, ["trace", str(tmp_path / "old.json"), "-o", str(tmp_path / name)])
    assert done.exit_code == 2
    assert f"File too large: {tmp_path / name}" in done.stderr
    assert (tmp_path / name).read_text() == "old"


def test_what_a_killed_process_left_goes_with_a_later_write(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from kad.disk import scratch\n"
        "with scratch(Path(sys.argv[1])) as place:\n"
        "    (place / 'half').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    write_atomically(tmp_path / "a", "a")
    assert left.exists(), "it may still be at work"
    os.utime(left, (0, 0))
    write_atomically(tmp_path / "a", "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_pair_is_packed_through_the_same_door(tmp_path: Path) -> None:
    left = tmp_path / ".x.kad-scratch"
    left.mkdir()
    os.utime(left, (0, 0))
    two = ["--base", "tiny:big-base", "--aligned", "tiny:small-aligned"]
    assert CliRunner().invoke(app, ["pack", *two, "-o", str(tmp_path / "pair")]).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["pair"]


def test_devices_and_links_are_written_to(tmp_path: Path) -> None:
    with scratch(tmp_path) as place:
        file, link = place / "file", place / "link"
        write_atomically(file, "old")
        link.symlink_to(file)
        write_atomically(link, "new")
        assert link.is_symlink()
        assert file.read_text() == "new"
    with pytest.raises(OSError) as caught, whole(Path("/dev/full")) as place:
        place.write_text("x")
    assert caught.value.filename == "/dev/full"
    assert Path("/dev/full").is_char_device()

"""Files that kad keeps on this machine: whole or not at all, and nothing is left over for ever."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SCRATCH, _OLD_SECONDS = ".kad-scratch", 3600


def own_cache() -> Path:
    """The folder of kad's own cache on this machine, made where it is missing."""
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kad"
    root.mkdir(parents=True, exist_ok=True)
    return root


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A hidden folder in `folder`, gone at the end. So is what a killed process left there an hour ago or longer."""
    for left in folder.glob(f".*{_SCRATCH}"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _OLD_SECONDS:
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".", suffix=_SCRATCH) as place:
        yield Path(place)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file so that a reader, or a kill, sees the old one or the new one and nothing between.

    Raises:
        OSError: it cannot be written; the error has the file's name.
    """
    path = path.resolve()
    with named(path):
        if path.exists() and not path.is_file():
            yield path  # a device or a pipe: it can only be written to
            return
        with scratch(path.parent) as folder:
            yield folder / path.name
            with (folder / path.name).open("rb+") as file:
                os.fsync(file.fileno())
            (folder / path.name).replace(path)


def write_atomically(path: Path, text: str) -> None:
    """Write a text as a file; see `whole`."""
    with whole(path) as place, place.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Errors of the system within say which file they are about. A full disk does not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error

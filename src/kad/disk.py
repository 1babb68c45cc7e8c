"""Files that kad keeps on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def own_cache() -> Path:
    """The folder of kad's own cache on this machine, made where it is missing."""
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kad"
    root.mkdir(parents=True, exist_ok=True)
    return root


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader, or a kill, sees the old one or the new one and nothing between."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)

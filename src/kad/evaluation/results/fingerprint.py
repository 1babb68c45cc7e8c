"""Which model a run used, so that a resumed run can check it: hub ids by revision, folders by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from kad.pair.sources import Source

_MEGABYTE = 1 << 20


def fingerprint(source: Source) -> str:
    """The hub id with its revision, or the name of a folder or a GGUF file with a digest of the files.

    The same weights in another place are the same model. Other weights in the same place are another model.
    """
    if source.gguf_path is not None:
        return f"{source.gguf_path.name}:{_digest([source.gguf_path])}"
    if source.is_local:
        folder = Path(source.model)
        return f"{folder.name}:{_digest(path for path in folder.iterdir() if path.is_file())}"
    return source.model if source.revision is None else f"{source.model}@{source.revision}"


def _digest(files: Iterable[Path]) -> str:
    hashed = hashlib.sha256()
    for file in sorted(files):
        size = file.stat().st_size
        hashed.update(f"{file.name} {size}".encode())
        with file.open("rb") as data:
            # Beginning, middle and end are enough: training changes all weights, and files can have gigabytes.
            for start in sorted({0, max(0, size // 2), max(0, size - _MEGABYTE)}):
                data.seek(start)
                hashed.update(data.read(_MEGABYTE))
    return hashed.hexdigest()[:16]

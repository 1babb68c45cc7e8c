"""Rows of local files. Each row knows its place, so that a bad one can be found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kad.errors import UsageError

Row = Mapping[str, Any]


def read_rows(path: Path) -> Iterator[tuple[Row, str]]:
    """The JSON lines of one file, each with its place: "questions.jsonl, line 3".

    Raises:
        UsageError: the file cannot be read, or a line is no JSON object.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise UsageError(f"No file {path.name} in {path.parent}: the rows of the task should be there.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"Cannot read {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}."
        ) from error
    rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise UsageError(f"{path} has no row. Put one JSON object on each line.")
    for number, line in rows:
        yield _row(line, f"{path}, line {number}"), f"{path}, line {number}"


def _row(line: str, place: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{place} is not JSON ({error.msg}). Each line is one JSON object.") from error
    if not isinstance(row, dict):
        raise UsageError(f"{place} is no JSON object but {type(row).__name__}. Each line is one JSON object.")
    return row

"""What people and programs see of a command: results on standard output, messages on standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from kad.sources import Source


def stdout() -> Console:
    """For results. Colours only on a terminal, and never with NO_COLOR."""
    return Console(highlight=False)


def stderr() -> Console:
    """For progress and messages."""
    return Console(stderr=True, highlight=False)


def message(text: str) -> None:
    """One line on standard error."""
    typer.echo(text, err=True)


def print_json(value: Mapping[str, Any]) -> None:
    """The one JSON object of a command: UTF-8, a line per key, numbers that are not finite as null."""
    lines = (
        f"  {json.dumps(str(key))}: {json.dumps(_finite(item), ensure_ascii=False, allow_nan=False)}"
        for key, item in value.items()
    )
    sys.stdout.write("{\n" + ",\n".join(lines) + "\n}\n")
    sys.stdout.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def shown(reference: Source) -> str:
    """A model as a person would name it: the embedded family by its names, hub ids with their revision."""
    from kad import tiny

    folder = Path(reference.model)
    if folder.name in tiny.MODELS and folder == tiny.path(folder.name):
        return f"tiny:{folder.name}"
    return reference.model if reference.revision is None else f"{reference.model}@{reference.revision}"

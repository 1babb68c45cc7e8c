"""`kad generate` in this process, for the tests of the command line."""

from __future__ import annotations

import json
from typing import Any

from transformers import AutoTokenizer
from typer.testing import CliRunner

from kad import tiny
from kad.cli.main import app

Result = Any  # Click's, of which Typer may carry its own copy


def generate(*arguments: Any, code: int = 0, stdin: str | bytes | None = None, **env: str) -> Result:
    """What the command gives, without the color settings of whoever runs the tests; its exit code must be `code`."""
    settings = {"FORCE_COLOR": None, "NO_COLOR": None, **env}
    result = CliRunner().invoke(app, ["generate", *map(str, arguments)], input=stdin, env=settings)
    assert result.exit_code == code, f"{result.stderr}\n{result.exception!r}"
    return result


def as_json(result: Result) -> dict[str, Any]:
    """Standard output, which must be one JSON object and nothing else."""
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def make_tiny_tokenizer() -> Any:
    """The embedded family's."""
    return AutoTokenizer.from_pretrained(tiny.path("small-aligned"))

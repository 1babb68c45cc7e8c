"""Read the prompt: an argument, a file, or standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from kad.errors import UsageError


def read_prompt(argument: str | None, file: Path | None) -> str:
    """The prompt: the argument, a file, or standard input ("-", or nothing given and something piped in).

    One newline at the end of a file or of standard input belongs to the file, not to the prompt.

    Raises:
        UsageError: no prompt, two of them, an empty one, or a file that cannot be read as UTF-8.
    """
    if argument is not None and file is not None:
        raise UsageError("Give the prompt as an argument or with --file, not both.")
    if argument is None and file is None and sys.stdin.isatty():
        raise UsageError('No prompt. Give one as an argument (kad generate "..."), with --file, or on standard input.')
    prompt = argument if argument not in (None, "-") else _read(file)
    if prompt is None or not prompt.strip():
        raise UsageError("The prompt is empty.")
    return prompt


def _read(file: Path | None) -> str:
    name = "standard input" if file is None else str(file)
    try:
        raw = sys.stdin.buffer.read() if file is None else file.read_bytes()
        return raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text (byte {error.start}). Convert it first.") from error
    except OSError as error:
        raise UsageError(f"Cannot read {name}: {error.strerror}.") from error

"""The output of commands: results on standard output, messages on standard error."""

from __future__ import annotations

import codecs
import io
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from logging import ERROR, getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.segment import Segment

from kad.cli.wrapping import Wrapper
from kad.disk import scratch
from kad.errors import UsageError
from kad.words import shown

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderableType
    from rich.table import Table
    from rich.text import Text

    from kad.pair.sources import Source

WRONG_INPUT = 2
"""The exit code for wrong input."""

# Signs of our own texts as ASCII. Any other character that an encoding lacks is written as its number, "\\u4e2d".
_PLAIN = str.maketrans(
    {"≥": ">=", "≤": "<=", "∝": "~", "∞": "inf", "→": "->", "−": "-", "–": "-", "…": "...", "·": "*", "×": "x"}
    | {"π": "pi", "α": "alpha", "β": "beta", "τ": "tau"}
)


def write_anything() -> None:
    """Let standard output and error take every character, also where their encoding (cp1252, ascii) lacks it."""
    codecs.register_error("kad.plain", _as_plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="kad.plain")


def _as_plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_PLAIN)
    return text.encode("ascii", "backslashreplace").decode(), error.end


def stdout() -> Console:
    """For results. Colors only on a terminal, and never with NO_COLOR."""
    return _Terminal(**_PLAINLY)


def stderr() -> Console:
    """For progress and messages."""
    return _Terminal(stderr=True, **_PLAINLY)


# A text is a text: what models and files hold is no markup.
_PLAINLY: Any = {"highlight": False, "markup": False, "emoji": False}


class _Terminal(Console):
    """On a terminal, only Rich itself sends control characters."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            plain = segment.control or not self.is_terminal
            yield segment if plain else Segment(shown(segment.text), segment.style)


def write(text: str, stream: TextIO | None = None) -> None:
    """Write a text without delay, by default to standard output. All that kad prints goes here or through a console."""
    stream = stream or sys.stdout
    stream.write(shown(text) if stream.isatty() else text)
    stream.flush()


def message(text: str, column: int = 0) -> None:
    """A line on standard error; a terminal shows it in whole words.

    Args:
        text: what to say.
        column: how many cells of the line are taken already.
    """
    if sys.stderr.isatty():
        wrapper = Wrapper(lambda part: write(part, sys.stderr), lambda: shutil.get_terminal_size().columns, column)
        wrapper.push(text)
        wrapper.finish()
        text = ""
    write(f"{text}\n", sys.stderr)


def note(text: str) -> None:
    """One line on standard error that begins with "note:"."""
    message(f"note: {text}")


def quiet_transformers() -> None:
    """Silence Transformers' bars and remarks; errors still come as exceptions."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Its lines about every retry say no more than the exception at the end.
    getLogger("huggingface_hub").setLevel(ERROR)


def facts(lines: Iterable[tuple[str, str | Text]], style: str = "bold cyan") -> Table:
    """A table of names and texts, one line each, that can be copied as text."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in lines:
        grid.add_row(Text(name, style), Text(text) if isinstance(text, str) else text)
    return grid


def check_writable(file: Path) -> None:
    """Raise UsageError if a file for results cannot be written, before the work is done."""
    if not file.parent.exists():
        raise UsageError(f"Cannot write {file}: there is no folder {file.parent}.")
    if file.is_dir():
        raise UsageError(f"Cannot write {file}: it is a folder.")
    try:
        if file.exists():
            file.open("ab").close()
        if file.is_file() or not file.exists():
            with scratch(file.resolve().parent):
                pass
    except OSError as error:
        raise UsageError(f"Cannot write {file}: {error.strerror}.") from error


def check_folder(folder: Path, what: str | None = None, advice: str = "") -> None:
    """Raise UsageError if nothing can be written in a folder for results, before the work is done.

    Args:
        folder: it need not exist.
        what: what shall be written, in the words of the message.
        advice: the end of the message.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with scratch(folder):
            pass
        if is_new:
            folder.rmdir()
    except OSError as error:
        problem = f"Cannot write {what or f'to the folder {folder}'}: {error.strerror}."
        raise UsageError(f"{problem} {advice}".rstrip()) from error


def print_result(
    value: Mapping[str, Any], as_json: bool, render: Callable[[], RenderableType], *, soft_wrap: bool = False
) -> None:
    """The result of a command: as JSON, or as `render` makes it for people."""
    if as_json:
        print_json(value)
    else:
        stdout().print(render(), soft_wrap=soft_wrap)


def print_json(value: Mapping[str, Any]) -> None:
    """The one JSON object of a command: a line per key, numbers that are not finite as null.

    Where standard output is not UTF-8 (a pipe in cp1252), characters beyond ASCII are escaped, so it stays JSON.
    """
    escape = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    lines = (
        f"  {json.dumps(str(key))}: {json.dumps(_finite(item), ensure_ascii=escape, allow_nan=False)}"
        for key, item in value.items()
    )
    write("{\n" + ",\n".join(lines) + "\n}\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def name_of(source: Source) -> str:
    """A short name of a model: tiny:NAME for the embedded ones, a GGUF file's path, or a hub id with its revision.

    Of a model on a server, the server's address.
    """
    from kad import tiny

    if source.url is not None:
        return source.url if source.served is None else f"{source.url}#{source.served}"

    folder = Path(source.model)
    if folder.name in tiny.MODELS and folder == tiny.path(folder.name):
        return f"tiny:{folder.name}"
    if source.gguf_path is not None:
        return str(source.gguf_path)
    return source.model if source.revision is None else f"{source.model}@{source.revision}"

"""What others have written reaches a terminal as text: no escape of a model, a trace, a rule or a file gets through."""

from __future__ import annotations

import ast
import io
import json
import re
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

import kad
from kad.cli import stdio
from kad.cli.main import app
from kad.tracing.schema import Trace
from kad.words import shown

# The clipboard, a title, a cleared screen, colors; the same with 8-bit controls; markup of Rich.
EVIL = "\x1b]52;c;ZXZpbA==\x07\x1b]0;t\x07\x1b[2J\x1b[31m\x9b2J\x9d0;t\x9c\x08\x7f\r[/x][bold]"
HELP = ["typer.echo(context.get_help())", "sys.stderr.write('\\n')"]
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Terminal(io.StringIO):
    """A terminal that shows no colors, so that every escape in it is somebody else's."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def called(*arguments: object) -> str:
    """What a terminal gets from a command."""
    with redirect_stdout(Terminal()) as screen, redirect_stderr(screen), pytest.raises(SystemExit):
        app([str(argument) for argument in arguments])
    return screen.getvalue()


@pytest.fixture(autouse=True)
def _no_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A trace of somebody else."""
    values = kad.trace(kad.load(), "Ann has 5 pens.", "She has 5.").to_dict()
    values |= {"rule_text": EVIL, "vocabulary": dict.fromkeys(values["vocabulary"], EVIL)}
    values["positions"] = [position | {"text": EVIL} for position in values["positions"]]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A pair whose aligned model says such things: every token of its tokenizer has the escapes in its text."""
    folder, small = tmp_path / "pair", tmp_path / "small"
    shutil.copytree(kad.tiny.path("pair"), folder)
    shutil.copytree(kad.tiny.path("small-aligned"), small)
    for place in (folder, small):
        tokenizer = json.loads((place / "tokenizer.json").read_text(encoding="utf-8"))
        tokenizer["decoder"] = {
            "type": "Sequence",
            "decoders": [tokenizer["decoder"], {"type": "Replace", "pattern": {"Regex": "[0-9a-z]"}, "content": EVIL}],
        }
        (place / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"base": {"model": "tiny:big-base"}, "aligned": {"model": str(small)}, "reference": None}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ("trace", "TRACE"),
        ("trace", "TRACE", "--all"),
        ("trace", "TRACE", "--json"),
        ("generate", "--pair", "PAIR", "-n", "6", "Ann has 5 pens. She buys 8 more. How many?"),
        ("generate", "--pair", "PAIR", "-n", "6", "--color", "--stats", "Ann has 5 pens. She buys 8 more. How many?"),
        ("generate", "--pair", "PAIR", "-n", "6", "--json", "Ann has 5 pens. She buys 8 more. How many?"),
        ("generate", "--rule", EVIL, "Hi"),
        ("info", EVIL),
        ("serve", "tiny", "--engine", "vllm", "--dry-run", f"--{EVIL}"),
    ],
    ids=lambda arguments: " ".join(arguments).encode("ascii", "replace").decode().replace("\x1b", "?")[:40],
)
def test_a_terminal_gets_no_command_of_somebody_else(arguments: tuple[str, ...], trace: Path, pair: Path) -> None:
    places = {"TRACE": trace, "PAIR": pair}
    text = called(*(places.get(word, word) for word in arguments))
    assert "\\u001b" in text or "\\x1b" in text, "else the escapes were not in what is shown"
    assert not CONTROL.search(text), repr(text[:300])


def test_chat_shows_escapes(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Ann has 5 pens. She buys 8 more. How many?\n/color\n"))
    text = called("chat", pair, "-n", "6")
    assert "\\u001b" in text
    assert not CONTROL.search(text)


def test_a_trace_printed_in_python_is_as_safe(trace: Path) -> None:
    from rich.console import Console

    screen = Terminal()
    Console(file=screen, color_system=None).print(Trace.from_json(trace.read_text(encoding="utf-8")))
    assert not CONTROL.search(screen.getvalue())


def test_what_is_no_terminal_gets_the_text_itself() -> None:
    with redirect_stdout(io.StringIO()) as file:
        stdio.write(EVIL)
    assert file.getvalue() == EVIL


def test_line_breaks_tabs_and_all_letters_stay() -> None:
    text = "a\tb\nc é 中 👩‍🚀 אב"
    assert shown(text) == text
    assert shown("\x1b\x9b\r") == "\\u001b\\u009b\\u000d"


def test_everything_is_printed_through_one_door() -> None:
    """`kad.cli.stdio`; Typer prints the pages of help, which are kad's own words. vLLM's server is another program."""
    direct = re.compile(r"(typer\.s?echo|print|Console|sys\.std(out|err)\.write)\(")
    source = Path(kad.__file__).parent
    for file in source.rglob("*.py"):
        if file.relative_to(source).as_posix() == "cli/stdio.py":
            continue
        calls = (node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
        found = [code for call in calls if direct.match(code := ast.unparse(call))]
        if file.name == "launch.py":
            found = [code for code in found if not code.startswith("sys.stderr.write(shown(")]
        assert found in ([], HELP), file


QUESTION = "Ann has 5 pens. She buys 8 more. How many pens does she have now?"


@pytest.mark.parametrize("arguments", [("info", "nope"), ("chat", "tiny"), ("generate", QUESTION)], ids=lambda a: a[0])
def test_no_word_is_broken_at_the_margin(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """In answers, in what chat says at first, and in errors."""
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("kad.cli.chat._edit_lines", lambda: None)
    text = {}
    for width in ("32", "500"):
        lines = iter([QUESTION, "/rul", "/quit"])
        monkeypatch.setattr("builtins.input", lambda prompt, lines=lines: next(lines))
        monkeypatch.setenv("COLUMNS", width)
        text[width] = called(*arguments)
    assert max(map(len, text["32"].splitlines())) <= 32 < max(map(len, text["500"].splitlines()))
    assert text["32"].split() == text["500"].split()

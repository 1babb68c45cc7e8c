"""What a pair does on a few prompts, and the lines that show it: `kad info --probe`, and the end of `kad tune`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from kad.cli import stdio
from kad.cli.options import ModelOptions
from kad.words import counted

if TYPE_CHECKING:
    from kad.evaluation.tasks.task import Task
    from kad.text.prompts import Prompt


def questions(models: ModelOptions, prompts: Path | None) -> Sequence[Prompt]:
    """What a pair is asked: the lines of a file, the embedded pair's own problems, or common requests."""
    from kad.cli.questions import read_lines
    from kad.figures.probe import PROMPTS
    from kad.tiny.problems import problems

    if prompts is not None:
        return read_lines(prompts)
    if models.pair == "tiny":
        return [problem.question for problem in problems("held-out", len(PROMPTS))]
    return PROMPTS


def questions_of(tasks: Sequence[Task]) -> Sequence[Prompt]:
    """The first questions of some tasks, in turn."""
    from kad.figures.probe import PROMPTS

    asked = [[question.conversation for question in task.questions(lambda messages: "")] for task in tasks]
    turns = [rows[turn] for turn in range(max(map(len, asked))) for rows in asked if turn < len(rows)]
    return turns[: len(PROMPTS)]


def run(models: ModelOptions, asked: Sequence[Prompt], thinking: bool | None = None) -> dict[str, Any]:
    """What the pair does on these prompts, as JSON, with what to try."""
    from kad.figures.probe import probe

    with stdio.stderr().status("Probing ..."):
        found = probe(models.load(), asked, thinking=thinking)
    return {**asdict(found), "advice": found.advice()}


def rows(found: dict[str, Any] | None) -> list[tuple[str, Text]]:
    """Name and text of every line."""
    if found is None:
        return []
    alpha, deferred = found["deferred_mass"], found["sure_deferred"]
    means = "" if alpha is None else f"deferred mass α {alpha:.3f}, "
    there = "" if deferred is None else f"; deferred mass there {deferred:.3f}"
    apart = [f"{row['base']!r} / {row['aligned']!r} ({row['positions']})" for row in found["disagreements"]]
    lines = [
        ("probe", f"{counted(found['answers'], 'greedy answer')}, {counted(found['positions'], 'token')}"),
        ("", f"{means}acceptance {found['acceptance']:.3f}, both prefer the same token at {found['agreement']:.0%}"),
        ("sure", f"the base model gives one token 0.9 or more at {found['sure']:.0%}{there}"),
        ("", f"there the aligned model prefers another token: at {found['sure_apart']:.1%} of all"),
        ("apart", f"base / aligned: {', '.join(apart)}" if apart else "nowhere"),
    ]
    return [(name, Text(text)) for name, text in [*lines, *(("try", text) for text in found["advice"])]]


def table(lines: Sequence[tuple[str, Text]]) -> Table:
    """Lines with their names before them."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in lines:
        grid.add_row(Text(name, style="bold cyan"), text)
    return grid

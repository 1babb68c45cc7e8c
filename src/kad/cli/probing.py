"""`kad info --probe`: what a pair does on a few prompts, and the lines that show it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.text import Text

from kad.cli import stdio
from kad.cli.options import ModelOptions
from kad.quantities import counted


def run(models: ModelOptions, prompts: Path | None) -> dict[str, Any]:
    """What the pair does on a few prompts: the embedded one on its own problems, others on common requests."""
    from kad.cli.questions import read_lines
    from kad.figures.probe import PROMPTS, probe
    from kad.tiny.problems import problems

    asked: list[str] | tuple[str, ...] = PROMPTS
    if prompts is not None:
        asked = read_lines(prompts)
    elif models.pair == "tiny":
        asked = [problem.messages()[-1]["content"] for problem in problems("held-out", len(PROMPTS))]
    with stdio.stderr().status("Probing ..."):
        found = probe(models.load(), asked)
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

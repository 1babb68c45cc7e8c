"""`kad trace`: what the rule did at every position of an answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kad.cli import options, stdio
from kad.cli.prompts import read_prompt
from kad.errors import UsageError
from kad.options import Option
from kad.quantities import counted
from kad.text.drafting import DraftTokens
from kad.text.sampling import Sampling

if TYPE_CHECKING:
    from kad.tracing.schema import Trace

EXAMPLES = (
    'kad trace "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?" -o trace.html',
    'kad trace "Tom has 61 coins. He spends 17. Then he gives away 8. How many coins are left?" --rule primal --all',
    'kad trace "Why is the sky blue?" --pair my-pair --text answer.txt -o trace.html',
    "kad trace trace.json -o trace.html",
)


def command(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="[PROMPT]", help="The prompt, or a trace (.json) to show again. - reads the prompt."),
    ] = None,
    *,
    file: options.PromptFile = None,
    text: Annotated[Path | None, Option("Score the answer in this file instead of generating one.", "FILE")] = None,
    out: Annotated[Path | None, Option("Write a page (.html) or the data (.json).", "FILE", "-o")] = None,
    every_position: Annotated[
        bool,
        Option(
            "In the terminal, list every position, not only those where p's first choice was another token.",
            name="--all",
        ),
    ] = False,
    system: options.System = None,
    raw: options.Raw = False,
    thinking: options.Thinking = None,
    draft_tokens: DraftTokens = None,
    as_json: options.Json = False,
    models: options.ModelOptions,
    sampling: Sampling,
) -> None:
    """Record what the rule did at every position: which model each token came from, and the distributions behind it.

    Without -o the trace is shown in the terminal. -o trace.html writes one page that works offline. -o trace.json
    writes the data, and kad trace trace.json shows it again.
    """
    if out is not None:
        if out.suffix.lower() not in (".html", ".json"):
            raise UsageError(f"A trace is written as .html or .json, not {out.name!r}.")
        stdio.check_writable(out)
    stored = _stored(prompt)
    if stored is not None:
        _deliver(_read(stored), out, every_position, as_json)
        return
    question = read_prompt(prompt, file)
    options.check_raw(raw, system, thinking)
    answer = None if text is None else read_prompt(None, text)
    model = models.load()
    from kad.tracing.ask import trace

    made = trace(
        model, question, answer, system=system, thinking=thinking, raw=raw,
        sampling=sampling, num_draft_tokens=draft_tokens,
    )  # fmt: skip
    _deliver(made, out, every_position, as_json)


def _stored(prompt: str | None) -> Path | None:
    """The trace file that the prompt names, if it names one."""
    if prompt is None or not prompt.endswith(".json") or "\n" in prompt:
        return None
    return Path(prompt) if Path(prompt).is_file() else None


def _read(path: Path) -> Trace:
    from kad.tracing.schema import Trace

    return Trace.from_json(path.read_text(encoding="utf-8"))


def _deliver(trace: Trace, out: Path | None, every_position: bool, as_json: bool) -> None:
    if out is not None:
        trace.save(out)
        stdio.message(f"Wrote {out}: {counted(len(trace.positions), 'token')} under {trace.rule_text}.")
    if as_json:
        stdio.print_json(trace.to_dict())
    elif out is None:
        from kad.tracing.terminal import render

        stdio.stdout().print(render(trace, every_position))

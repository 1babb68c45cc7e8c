"""`kad trace`: what the rule did at every position of an answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kad.cli import common, stdio
from kad.errors import UsageError
from kad.options import Option
from kad.text.drafting import DraftTokens
from kad.text.sampling import Sampling
from kad.words import counted

if TYPE_CHECKING:
    from kad.tracing.schema import Trace

EXAMPLES = (
    'kad trace "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?" -o trace.html',
    'kad trace "Tom has 61 coins. He spends 17. Then he gives away 8. How many coins are left?" --rule primal --all',
    'kad trace "Why is the sky blue?" --pair my-pair --text answer.txt -o trace.html',
    "kad trace trace.json -o trace.html",
    'kad trace "Tom has 61 coins. He spends 17. How many are left?" --beside aligned_only -o two.html',
)


def command(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="[PROMPT]", help="The prompt, or a trace (.json) to show again. - reads the prompt."),
    ] = None,
    *,
    text: Annotated[Path | None, Option("Score the answer in this file instead of generating one.", "FILE")] = None,
    out: Annotated[Path | None, Option("Write a page (.html) or the data (.json).", "FILE", "-o")] = None,
    beside: Annotated[
        str | None,
        Option("A second trace on the page: another rule for the same prompt, or a trace (.json).", "RULE|FILE"),
    ] = None,
    every_position: Annotated[
        bool,
        Option(
            "In the terminal, list every position, not only those where one model overruled the other.",
            name="--all",
        ),
    ] = False,
    asking: common.PromptOptions,
    draft_tokens: DraftTokens = None,
    as_json: common.Json = False,
    models: common.ModelOptions,
    sampling: Sampling,
) -> None:
    """Record what the rule did at every position: which model each token came from, and the distributions behind it.

    Without -o the trace is shown in the terminal. -o trace.html writes one page that works offline. -o trace.json
    writes the data, and kad trace trace.json shows it again. --beside shows another rule on the same
    prompt.
    """
    if out is not None:
        if out.suffix.lower() not in (".html", ".json"):
            raise UsageError(f"A trace is written as .html or .json, not {out.name!r}.")
        stdio.check_writable(out)
    if beside is not None and (out is None or out.suffix.lower() != ".html"):
        raise UsageError("Two traces side by side are a page: add -o NAME.html.")
    stored = _stored(prompt)
    if stored is not None:
        _deliver(_read(stored), None if beside is None else _read(Path(beside)), out, every_position, as_json)
        return
    question = asking.read(prompt)
    answer = None if text is None else common.read_prompt(None, text)
    other = _stored(beside)
    if beside is not None and other is None:
        common.check_rule(beside)
    models.say_topic(question)
    model = models.load()
    from kad.tracing.ask import trace

    def traced(rule: str | None = None) -> Trace:
        return trace(
            model, question, answer, **asking.template, raw=asking.raw, sampling=sampling,
            num_draft_tokens=draft_tokens, rule=rule,
        )  # fmt: skip

    first = traced()
    second = None if beside is None else traced(beside) if other is None else _read(other)
    _deliver(first, second, out, every_position, as_json)


def _stored(prompt: str | None) -> Path | None:
    """The trace file that the prompt names, if it names one."""
    if prompt is None or not prompt.endswith(".json") or "\n" in prompt:
        return None
    return Path(prompt) if Path(prompt).is_file() else None


def _read(path: Path) -> Trace:
    from kad.tracing.schema import Trace

    if not path.is_file():
        raise UsageError(f"No trace at {path}. Beside a stored trace, --beside takes another stored trace (.json).")
    try:
        return Trace.from_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no trace: it is not UTF-8 text (byte {error.start}).") from error


def _deliver(trace: Trace, beside: Trace | None, out: Path | None, every_position: bool, as_json: bool) -> None:
    if out is not None:
        trace.save(out, beside=beside)
        stdio.message(f"Wrote {out}: {counted(len(trace.positions), 'token')} under {trace.rule_text}.")
    if as_json:
        stdio.print_json(trace.to_dict())
    elif out is None:
        stdio.stdout().print(trace.in_terminal(every_position))

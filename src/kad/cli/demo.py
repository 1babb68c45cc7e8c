"""`kad demo`: alignment at work on the embedded tiny pair."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from kad.cli import stdio
from kad.cli.options import Json
from kad.options import Option

if TYPE_CHECKING:
    from kad.engines.pair import Pair
    from kad.engines.transformers.modeling import KadForCausalLM
    from kad.tiny.measure import Attempt

EXAMPLES = ("kad demo", "kad demo --problems 200", "kad demo --real", "kad demo --json")

BASE, ALIGNED, COMPOSED, BOUND = "big base alone", "small aligned alone", "composed", "big aligned (upper bound)"
_STYLES = {BASE: "bright_blue", ALIGNED: "dark_orange", COMPOSED: "bold", BOUND: "dim"}
_SHOWN = 3
_NEXT = (
    ("kad demo --real", "the same with two real models"),
    ('kad generate --pair tiny "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?"', "yours"),
    ("kad chat tiny", "one problem after another"),
    ("kad sweep --help", "the same comparison over a rule's parameter"),
    ("kad generate --help", "the same with your own base and aligned model"),
)


@dataclass
class Shown:
    """One problem answered by the base model, the aligned model and their composition."""

    answers: dict[str, Attempt]
    base_shares: list[float]


@dataclass
class Findings:
    """What the demo found: answers to look at, accuracy per model, speed of composed decoding."""

    rule: str
    shown: list[Shown] = field(default_factory=list)
    correct: dict[str, int] = field(default_factory=dict)
    asked: int = 0
    tokens_per_second: float = 0.0
    seconds: float = 0.0


def command(
    *,
    problems: Annotated[int, Option("How many held-out problems to measure on.", "N", allowed="[1, 500]")] = 50,
    real: Annotated[
        bool, Option("Ask ten questions of a real pair instead: Gemma 3 270M under SmolLM2-135M-Instruct.")
    ] = False,
    as_json: Json = False,
) -> None:
    """See alignment at work on the embedded tiny pair, or on a real one.

    The big base model calculates well but does not keep the asked form. The small aligned model keeps the form but
    calculates badly. The demo shows three problems side by side, then the accuracy on held-out problems.
    """
    console, messages = Console(), stdio.stderr()
    if real:
        from kad.cli import demo_real

        demo_real.show(console, messages, as_json)
        return
    started = time.perf_counter()
    findings = _measure(problems, messages, None if as_json else console)
    findings.seconds = time.perf_counter() - started
    if as_json:
        typer.echo(json.dumps(_as_dict(findings)))
    else:
        _print_accuracy(console, findings)
        _print_next(console)


def _measure(n: int, messages: Console, console: Console | None) -> Findings:
    with messages.status("Loading the tiny family ..."):
        import torch
        from transformers.utils import logging

        from kad import tiny
        from kad.engines.load import load_one
        from kad.engines.pair import Pair
        from kad.pair.sources import Source

        logging.disable_progress_bar()
        # For models this small, several threads are slower than one.
        torch.set_num_threads(1)
        pair = tiny.pair()
        tokenizer = pair.tokenizer
        bound = load_one(Source.parse("tiny:big-aligned"), "transformers")
    findings = Findings(str(pair.rule))
    _answer_shown(findings, pair, tokenizer)
    if console is not None:
        _print_shown(console, findings)
    models = {BASE: _one(pair, "base"), ALIGNED: _one(pair, "aligned"), COMPOSED: pair, BOUND: Pair.one(bound)}
    _count_correct(findings, models, tokenizer, n, messages)
    return findings


def _answer_shown(findings: Findings, pair: KadForCausalLM, tokenizer: Any) -> None:
    """The answers to the first held-out problems, one at a time."""
    from kad import tiny
    from kad.tiny.measure import attempt

    asked = tiny.problems("held-out", _SHOWN)
    written, seconds = 0, 0.0
    for problem in asked:
        answers = {
            BASE: attempt(_one(pair, "base"), tokenizer, [problem])[0],
            ALIGNED: attempt(_one(pair, "aligned"), tokenizer, [problem])[0],
        }
        started = time.perf_counter()
        answers[COMPOSED] = attempt(pair, tokenizer, [problem])[0]
        seconds += time.perf_counter() - started
        written += len(answers[COMPOSED].token_ids) + 1  # and the end of the turn
        findings.shown.append(Shown(answers, _base_shares(pair, answers[COMPOSED])))
    findings.tokens_per_second = written / seconds


def _one(pair: KadForCausalLM, role: str) -> Pair:
    """One model of the pair by itself."""
    from kad.engines.pair import Pair

    return Pair.one(pair.pair.models[role])


def _base_shares(pair: KadForCausalLM, answer: Attempt) -> list[float]:
    """For each token, the share of its probability that comes from the base model."""
    from kad.text.score import score_tokens

    found = score_tokens(pair, answer.prompt_ids, answer.token_ids, pair.composition)
    assert found.base_share is not None, "the embedded pair is a cascade"
    shares: list[float] = found.base_share.tolist()
    return shares


def _count_correct(findings: Findings, models: dict[str, Any], tokenizer: Any, n: int, messages: Console) -> None:
    from kad import tiny
    from kad.tiny.measure import attempt

    held_out = tiny.problems("held-out", n)
    findings.asked = n
    columns = (TextColumn("{task.description:<26}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=messages, transient=True) as progress:
        for name, model in models.items():
            task = progress.add_task(name, total=n)
            advance = partial(progress.advance, task)
            answers = attempt(model, tokenizer, held_out, batch_size=25, progress=advance)
            findings.correct[name] = sum(a.correct for a in answers)


def _print_shown(console: Console, findings: Findings) -> None:
    console.print()
    console.print(f"A big base model and a small aligned one, composed by [bold]{findings.rule}[/bold].")
    legend = Text.assemble(
        "Tokens decided by the ", ("big base model", _STYLES[BASE]), " and by the ",
        ("small aligned model", _STYLES[ALIGNED]), ".",
    )  # fmt: skip
    console.print(legend)
    for shown in findings.shown:
        problem = shown.answers[COMPOSED].problem
        table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1))
        for name in (BASE, ALIGNED, COMPOSED):
            table.add_column(Text(name, style=_STYLES[name]), ratio=1)
        table.add_row(*(_cell(name, shown) for name in (BASE, ALIGNED, COMPOSED)))
        console.print()
        console.print(Text(problem.question), Text(f" ({problem.answer})", style="dim"))
        console.print(table)


def _cell(name: str, shown: Shown) -> Text:
    answer = shown.answers[name]
    text = Text(answer.text.strip(), style=_STYLES[name]) if name != COMPOSED else _colored(answer, shown.base_shares)
    mark = ("\n✓ right", "green") if answer.correct else ("\n✗ wrong", "red")
    return Text.assemble(text, mark if "\\boxed" in answer.text else ("\n✗ no boxed answer", "red"))


def _colored(answer: Attempt, shares: Sequence[float]) -> Text:
    from kad import tiny
    from kad.pair.model_files import load_tokenizer
    from kad.pair.sources import Source
    from kad.text.prompts import pieces

    tokens = pieces(load_tokenizer(Source(str(tiny.path("pair")))), answer.token_ids)
    styles = [_STYLES[BASE] if share >= 0.5 else _STYLES[ALIGNED] for share in shares]
    return Text.assemble(*zip(tokens, styles, strict=True))


def _print_accuracy(console: Console, findings: Findings) -> None:
    from kad import tiny

    table = Table(box=box.SIMPLE_HEAD, title=f"{findings.asked} held-out problems, greedy", title_justify="left")
    table.add_column("model")
    table.add_column("right", justify="right")
    table.add_column("")
    for name, correct in findings.correct.items():
        share = correct / findings.asked
        table.add_row(
            Text(name, style=_STYLES[name]), f"{100 * share:.0f} %", Text("█" * round(30 * share), style=_STYLES[name])
        )
    console.print(table)
    size = sum((tiny.path(name) / "model.safetensors").stat().st_size for name in tiny.MODELS) / 1e6
    console.print(
        f"Composed decoding, one problem at a time: {findings.tokens_per_second:.0f} tokens per second. "
        f"The four models take {size:.1f} MB, and know such problems and nothing else. "
        f"All of it took {findings.seconds:.0f} s."
    )


def _print_next(console: Console) -> None:
    console.print("\nNext:")
    for line, what in _NEXT:
        console.print(f"  [cyan]{line}[/cyan]  [dim]{what}[/dim]", soft_wrap=True)


def _as_dict(findings: Findings) -> dict[str, Any]:
    return {
        "rule": findings.rule,
        "problems": [_shown_as_dict(shown) for shown in findings.shown],
        "accuracy": {name: correct / findings.asked for name, correct in findings.correct.items()},
        "asked": findings.asked,
        "tokens_per_second": findings.tokens_per_second,
        "seconds": findings.seconds,
    }


def _shown_as_dict(shown: Shown) -> dict[str, Any]:
    problem = shown.answers[COMPOSED].problem
    answers = {name: {"text": a.text, "correct": a.correct} for name, a in shown.answers.items()}
    return {
        "question": problem.question,
        "answer": problem.answer,
        "answers": answers,
        "base_share": shown.base_shares,
    }

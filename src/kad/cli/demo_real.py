"""`kad demo --real`: a real base model, a real aligned one, and their composition, on ten questions."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kad.cli import loading, origins
from kad.tracing import palette

LIMIT = 64
QUESTIONS = (
    ("What is the capital of Australia?", "Canberra"),
    ("What is the capital of Ecuador?", "Quito"),
    ("What is the capital of Ghana?", "Accra"),
    ("What is the currency of Japan?", "yen"),
    ("What is the currency of India?", "rupee"),
    ("Which chemical element has the symbol Au?", "gold"),
    ("Which chemical element has the symbol Sn?", "tin"),
    ("Who wrote the novel Pride and Prejudice?", "Austen"),
    ("Who wrote the novel War and Peace?", "Tolstoy|Tolstoi"),
    ("In which year did the Berlin Wall fall?", "1989"),
)
BASE, ALIGNED, COMPOSED = "base alone", "aligned alone", "composed"


@dataclass(frozen=True)
class Shown:
    """One answer: its text, whether it is right and ended by itself, and the base model's share of each piece."""

    text: str
    right: bool
    ended: bool
    pieces: Sequence[tuple[str, float]] = ()


def show(console: Console, messages: Console, as_json: bool) -> None:
    """Ask, and print the answers side by side.

    Raises:
        MissingExtraError: the extra `real-pair` is not installed.
    """
    from kad.tiny import real_pair

    loading.quiet_transformers()
    folders = real_pair.folders(messages.print)
    messages.print(real_pair.LICENSES, style="dim")
    with messages.status("Loading the models ..."):
        import kad

        started = time.perf_counter()
        pair = kad.load(
            base=str(folders["base"]),
            aligned=str(folders["aligned"]),
            rule=real_pair.RULE,
            base_prompt=real_pair.BASE_PROMPT,
        )
    rows = []
    if not as_json:
        _explain(console, real_pair.RULE)
    with messages.status("Both models alone ...") as status:
        alone = {BASE: _base_alone(pair, folders["base"]), ALIGNED: _aligned_alone(pair)}
        for index, (question, accepted) in enumerate(QUESTIONS):
            status.update(f"Question {index + 1} of {len(QUESTIONS)} ...")
            answers = {name: found[index] for name, found in alone.items()} | {
                COMPOSED: _composed(pair, question, accepted)
            }
            rows.append((question, answers))
            if not as_json:
                console.print(_table(question, answers))
    seconds = time.perf_counter() - started
    if as_json:
        found = [{"question": q, "answers": {name: asdict(a) for name, a in answers.items()}} for q, answers in rows]
        typer.echo(json.dumps({"rule": real_pair.RULE, "questions": found, "seconds": seconds}))
        return
    for name in (BASE, ALIGNED, COMPOSED):
        right, ended = (sum(getattr(answers[name], what) for _, answers in rows) for what in ("right", "ended"))
        console.print(f"{name:>14}: {right} of {len(rows)} right, {ended} ended by the model itself")
    console.print(f"\nAll of it took {seconds:.0f} s. More questions, with intervals: docs/real-pair.md.")


def _explain(console: Console, rule: str) -> None:
    console.print()
    console.print(f"Gemma 3 270M (base) and SmolLM2-135M-Instruct (aligned), composed by [bold]{rule}[/bold], greedy.")
    console.print("They have different tokenizers. The base model reads four examples, the aligned one its chat.")
    console.print(
        Text.assemble(
            "Tokens decided by the ", ("base model", palette.style(1.0)), " and by the ",
            ("aligned model", palette.style(0.0)), ".",
        )
    )  # fmt: skip


def _base_alone(pair: Any, folder: Any) -> list[Shown]:
    """The base model in its own tokens, until a stop of its prompt."""
    from kad.pair.model_files import load_tokenizer
    from kad.pair.sources import Source
    from kad.text.prompts import messages as said

    tokenizer, prompt = load_tokenizer(Source(str(folder))), pair.base_prompt
    prompts = [tokenizer(prompt.render(said(question)).rstrip(" ")).input_ids for question, _ in QUESTIONS]
    answers = _greedy(pair.base, tokenizer, prompts)
    shown = []
    for (text, ended), (_, accepted) in zip(answers, QUESTIONS, strict=True):
        ends = [place for stop in prompt.stops if (place := text.find(stop)) >= 0]
        shown.append(_shown(text[: min(ends)] if ends else text, ended or bool(ends), accepted))
    return shown


def _aligned_alone(pair: Any) -> list[Shown]:
    from kad.text.prompts import encode

    prompts = [encode(pair.tokenizer, question) for question, _ in QUESTIONS]
    answers = _greedy(pair.aligned, pair.tokenizer, prompts)
    return [_shown(text, ended, accepted) for (text, ended), (_, accepted) in zip(answers, QUESTIONS, strict=True)]


def _greedy(model: Any, tokenizer: Any, prompts: list[list[int]]) -> list[tuple[str, bool]]:
    from kad.text.batch import generate_all
    from kad.text.sampling import Sampling

    sampling = Sampling(max_new_tokens=LIMIT, temperature=0)
    return [(a.text, a.finished) for a in generate_all(model, tokenizer, prompts, sampling=sampling)]


def _composed(pair: Any, question: str, accepted: str) -> Shown:
    import kad

    answer = kad.generate(pair, question, sampling=kad.Sampling(max_new_tokens=LIMIT, temperature=0))
    pieces = [(piece.text, piece.base_share or 0.0) for piece in answer.pieces]
    return _shown(answer.text, answer.finished, accepted, pieces)


def _shown(text: str, ended: bool, accepted: str, pieces: Sequence[tuple[str, float]] = ()) -> Shown:
    from kad.evaluation.tasks.extract import contains

    return Shown(text.strip(), any(contains(text, answer) for answer in accepted.split("|")), ended, pieces)


def _table(question: str, answers: dict[str, Shown]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, expand=True, padding=(0, 1), title=Text(question), title_justify="left", title_style="bold"
    )
    for name, style in ((BASE, palette.style(1.0)), (ALIGNED, palette.style(0.0)), (COMPOSED, "bold")):
        table.add_column(Text(name, style=style), ratio=1)
    table.add_row(*(_cell(answer) for answer in answers.values()))
    return table


def _cell(answer: Shown) -> Text:
    text = origins.render(answer.pieces) if answer.pieces else Text(answer.text)
    mark = ("\n✓ right", "green") if answer.right else ("\n✗ wrong", "red")
    return Text.assemble(text, mark, "" if answer.ended else ("\n✗ goes on and on", "red"))

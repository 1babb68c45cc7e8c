"""`kad demo`: answers of one pair, from the base model alone, from the aligned model alone, and composed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

from rich import box
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from kad import palette
from kad.cli import stdio
from kad.cli.common import Json
from kad.errors import UsageError
from kad.options import Option
from kad.tracing.terminal import colored

if TYPE_CHECKING:
    from kad.engines.load import Loaded
    from kad.text.answer import Answer

EXAMPLES = ("kad demo", "kad demo --problems 200", "kad demo --real", "kad demo --json")

BASE, ALIGNED, COMPOSED, BOUND = "base alone", "aligned alone", "composed", "big aligned (upper bound)"
_STYLES = {BASE: palette.color(1.0), ALIGNED: palette.color(0.0), COMPOSED: "bold", BOUND: "dim"}
# A token of the aligned model is underlined already.
_DECIDING = "bold reverse"
_AT_ONCE = 16
_NEXT = (
    ("kad demo --real", "the same with two real models"),
    ('kad generate --pair tiny "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?"', "yours"),
    ("kad chat tiny", "one problem after another"),
    ("kad sweep --help", "the same comparison over a rule's parameter"),
    ("kad generate --help", "the same with your own base and aligned model"),
)
SHOWN = (20, 44, 87)
"""Held-out problems where all of it is seen: p is right and forgets the box, q* fills it with a wrong number."""
FACTS = (
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


@dataclass(frozen=True)
class Subject:
    """A pair, and the questions for it.

    Attributes:
        about: its models, in words.
        shown: questions whose answers are printed, each with the accepted answer.
        questions: those that are counted.
        kind: a name for such questions.
        problem: what is wrong with a text, from the text and the accepted answer. None if it is right.
        closing: a last sentence.
        form: a name for the form that is wanted.
        behaves: whether a text has it, from the text and whether the model ended it.
        bound: the big aligned model, if there is one. Its answers are only counted.
    """

    pair: Loaded
    about: str
    shown: Sequence[tuple[str, str]]
    questions: Sequence[tuple[str, str]]
    kind: str
    problem: Callable[[str, str], str | None]
    max_new_tokens: int
    closing: str
    form: str = "ended"
    behaves: Callable[[str, bool], bool] = lambda text, finished: finished
    bound: Any = None

    @cached_property
    def models(self) -> dict[str, Any]:
        """Who answers, by name."""
        from kad.engines.pair import Pair, pair_of

        pair = pair_of(self.pair)
        models: dict[str, Any] = {BASE: pair.base_model(), ALIGNED: Pair.one(pair.models["aligned"]), COMPOSED: pair}
        return models if self.bound is None else models | {BOUND: self.bound}


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        problem: what is wrong with it. None if it is right.
        behaves: whether it has the form that is wanted.
        pieces: the parts of a composed text, each with the share of the base model.
        deciding: the piece of the token where the base model most clearly overruled the aligned one.
    """

    text: str
    problem: str | None
    behaves: bool
    tokens: int = 0
    seconds: float = 0.0
    pieces: Sequence[tuple[str, float]] = ()
    deciding: int | None = None


def command(
    *,
    problems: Annotated[
        int | None, Option("How many held-out problems to measure on.", "N", allowed="[1, 500]", shown="50")
    ] = None,
    real: Annotated[
        bool, Option("Ask ten questions of a real pair instead: Gemma 3 270M under SmolLM2-135M-Instruct.")
    ] = False,
    as_json: Json = False,
) -> None:
    """See alignment at work on the embedded tiny pair, or on a real one.

    The big base model calculates well but does not keep the asked form. The small aligned model keeps the form but
    calculates badly. The demo shows three problems where this is seen, then the accuracy on held-out problems.
    """
    if real and problems is not None:
        raise UsageError("--real asks ten questions of its own. Leave out --problems.")
    console, messages = stdio.stdout(), stdio.stderr()
    console.quiet = as_json
    started = time.perf_counter()
    stdio.quiet_transformers()
    subject = _real_pair(messages) if real else _embedded_pair(problems or 50, messages)
    by_question = ask(subject, console, messages)
    replies = {name: [known[question] for question in subject.questions] for name, known in by_question.items()}
    seconds = time.perf_counter() - started
    if as_json:
        stdio.write(json.dumps(_as_dict(subject, by_question, replies, seconds)) + "\n")
        return
    console.print(_accuracies(subject, replies))
    console.print(
        f"Composed decoding, one question at a time: {_speed(replies):.0f} tokens per second. {subject.closing} "
        f"All of it took {seconds:.0f} s."
    )
    console.print("\nNext:")
    for line, what in _NEXT[real:]:
        console.print(Text.assemble("  ", (line, "cyan"), "  ", (what, "dim")), soft_wrap=True)


def _embedded_pair(count: int, messages: Console) -> Subject:
    """The tiny pair, and problems that it was not trained on."""
    with messages.status("Loading the tiny family ..."):
        import torch

        import kad
        from kad import tiny
        from kad.engines.load import load_one
        from kad.engines.pair import Pair
        from kad.pair.sources import Source
        from kad.tiny.measure import MAX_NEW_TOKENS

        # For models this small, several threads are slower than one.
        torch.set_num_threads(1)
        pair = kad.load("tiny")
        bound = Pair.one(load_one(Source.parse("tiny:big-aligned"), "transformers"))
    problems = tiny.problems("held-out", max(count, *SHOWN) + 1)
    size = sum((tiny.path(name) / "model.safetensors").stat().st_size for name in tiny.MODELS) / 1e6
    return Subject(
        pair=pair,
        about="A big base model and a small aligned one",
        shown=[(problems[number].question, str(problems[number].answer)) for number in SHOWN],
        questions=[(problem.question, str(problem.answer)) for problem in problems[:count]],
        kind="held-out problems",
        problem=lacks_box,
        max_new_tokens=MAX_NEW_TOKENS,
        closing=f"The four models take {size:.1f} MB, and know such problems and nothing else.",
        bound=bound,
    )


def _real_pair(messages: Console) -> Subject:
    """Gemma 3 270M under SmolLM2-135M-Instruct."""
    from kad.evaluation.tasks.marking import behaves
    from kad.tiny import real_pair

    folders = {role: str(folder) for role, folder in real_pair.folders(messages.print).items()}
    messages.print(real_pair.LICENSES, style="dim")
    with messages.status("Loading the models ..."):
        import kad

        pair = kad.load(
            base=folders["base"], aligned=folders["aligned"], rule=real_pair.RULE, base_prompt=real_pair.BASE_PROMPT
        )
    return Subject(
        pair=pair,
        about="Gemma 3 270M (base) and SmolLM2-135M-Instruct (aligned), with a tokenizer and a prompt each",
        shown=FACTS,
        questions=FACTS,
        kind="questions",
        problem=lacks_fact,
        max_new_tokens=64,
        closing="More questions, with intervals: docs/real-pair.md.",
        form="behaves",
        behaves=behaves,
    )


def lacks_box(text: str, accepted: str) -> str | None:
    """What is wrong with a text whose last box should hold the accepted answer."""
    from kad.tiny import boxed

    number = boxed(text)
    return "no boxed answer" if number is None else None if number == accepted else "wrong"


def lacks_fact(text: str, accepted: str) -> str | None:
    """What is wrong with a text in which one of the accepted answers, separated by "|", should stand."""
    from kad.evaluation.tasks.marking import contains

    return None if any(contains(text, answer) for answer in accepted.split("|")) else "wrong"


def ask(subject: Subject, console: Console, messages: Console) -> dict[str, dict[tuple[str, str], Reply]]:
    """The replies of every model, by question. Those that are shown are printed as they come."""
    console.print(Text.assemble(f"\n{subject.about}, composed by ", (str(subject.pair.rule), "bold"), "."))
    legend = colored([("base model", 1.0)]), " and by the ", colored([("aligned model", 0.0)])
    sign = "Like ", ("this", _DECIDING), ": the base model is sure, and the aligned one would write something else."
    console.print(Text.assemble("Tokens decided by the ", *legend, ". ", *sign, "\n"))
    if subject.shown != subject.questions:
        console.print("These problems were chosen because they show it. What is counted below was not chosen.\n")
    replies: dict[str, dict[tuple[str, str], Reply]] = {name: {} for name in subject.models}
    for number, question in enumerate(subject.shown, 1):
        with messages.status(f"Question {number} of {len(subject.shown)} ..."):
            three = {name: _replies(subject, name, [question], show=True)[0] for name in (BASE, ALIGNED, COMPOSED)}
        for name, reply in three.items():
            replies[name][question] = reply
        console.print(side_by_side(question, three))
    columns = (TextColumn("{task.description:<26}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=messages, transient=True) as progress:
        for name in subject.models:
            rest = [question for question in subject.questions if question not in replies[name]]
            task = progress.add_task(name, total=len(rest))
            for start in range(0, len(rest), _AT_ONCE):
                some = rest[start : start + _AT_ONCE]
                replies[name].update(zip(some, _replies(subject, name, some), strict=True))
                progress.update(task, completed=start + _AT_ONCE)
    return replies


def _replies(subject: Subject, name: str, questions: Sequence[tuple[str, str]], *, show: bool = False) -> list[Reply]:
    """One model's greedy replies. The composed model answers as in `kad generate`, the others many at once.

    The base model alone reads the prompt that the pair has for it, if any, in its own tokens.
    """
    import kad
    from kad.engines.pair import pair_of
    from kad.text.batch import generate_all
    from kad.text.contexts import Asking
    from kad.text.ends import before_stop
    from kad.text.sampling import end_tokens

    pair, base = subject.pair, name == BASE
    greedy = kad.Sampling(max_new_tokens=subject.max_new_tokens, temperature=0)
    contexts = [Asking(question).context(pair_of(pair)) for question, _ in questions]
    stops = contexts[0].stops if base else ()
    if name == COMPOSED:
        answers = [kad.generate(pair, question, sampling=greedy) for question, _ in questions]
    else:
        other = pair.base_tokenizer if base else None
        answers = generate_all(
            subject.models[name],
            other or pair.tokenizer,
            [(base and context.base_ids) or context.ids for context in contexts],
            sampling=replace(greedy, stop=stops),
            ends=None if other else end_tokens(pair.generation_config),
        )
    replies = []
    for answer, (_, accepted) in zip(answers, questions, strict=True):
        text = before_stop(answer.text, stops, answer.finish_reason == "stop_string")
        pieces = [(piece.text, piece.base_share or 0.0) for piece in answer.pieces]
        problem, form = subject.problem(text, accepted), subject.behaves(text, answer.finished)
        deciding = _deciding(pair, answer) if show and name == COMPOSED else None
        replies.append(Reply(text.strip(), problem, form, len(answer.token_ids), answer.seconds, pieces, deciding))
    return replies


def _deciding(pair: Loaded, answer: Answer) -> int | None:
    """The position where the base model overruled an aligned model that was surest. None if it never did."""
    from kad.tracing.terminal import overruled
    from kad.tracing.tracer import trace_tokens

    if not answer.token_ids:
        return None
    trace = trace_tokens(pair, pair.tokenizer, answer.prompt, answer.token_ids)
    return next(iter(overruled(trace.positions, "p", "p_aligned")), None)


def side_by_side(question: tuple[str, str], replies: Mapping[str, Reply]) -> Group:
    """A question with its accepted answer, and the replies to it."""
    columns = (Column(Text(name, style=_STYLES[name]), ratio=1) for name in replies)
    table = Table(*columns, box=box.SIMPLE_HEAD, expand=True, padding=(0, 1))
    table.add_row(*(_cell(name, reply) for name, reply in replies.items()))
    return Group(Text.assemble((question[0], "bold"), (f" ({question[1]})", "dim")), table)


def _cell(name: str, reply: Reply) -> Text:
    text = colored(reply.pieces) if reply.pieces else Text(reply.text, style=_STYLES[name])
    if reply.deciding is not None:
        before, token = (colored(reply.pieces[: reply.deciding + more]) for more in (0, 1))
        text.stylize(_DECIDING, len(before), len(token))
    text.rstrip()
    mark = (f"\n✗ {reply.problem}", "red") if reply.problem else ("\n✓ right", "green")
    wrong = "\n✗ goes on and on" if reply.text else "\n✗ says nothing"
    return Text.assemble(text, mark, "" if reply.behaves else (wrong, "red"))


def _accuracies(subject: Subject, replies: Mapping[str, Sequence[Reply]]) -> Table:
    title = f"{len(subject.questions)} {subject.kind}, greedy"
    columns = Column("model", no_wrap=True), Column("right", justify="right"), Column(subject.form, justify="right"), ""
    table = Table(*columns, box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for name, answered in replies.items():
        right, behaves = _right(answered), sum(reply.behaves for reply in answered) / len(answered)
        style = _STYLES[name]
        table.add_row(Text(name, style), f"{right:.0%}", f"{behaves:.0%}", Text("█" * round(28 * right), style))
    return table


def _right(replies: Sequence[Reply]) -> float:
    return sum(reply.problem is None for reply in replies) / len(replies)


def _speed(replies: Mapping[str, Sequence[Reply]]) -> float:
    composed = replies[COMPOSED]
    return sum(reply.tokens for reply in composed) / sum(reply.seconds for reply in composed)


def _as_dict(
    subject: Subject,
    by_question: Mapping[str, Mapping[tuple[str, str], Reply]],
    replies: Mapping[str, Sequence[Reply]],
    seconds: float,
) -> dict[str, Any]:
    examples = []
    for question in subject.shown:
        answers = {name: asdict(by_question[name][question]) for name in (BASE, ALIGNED, COMPOSED)}
        examples.append({"question": question[0], "answer": question[1], "answers": answers})
    return {
        "rule": str(subject.pair.rule),
        "questions": examples,
        "asked": len(subject.questions),
        "accuracy": {name: _right(answered) for name, answered in replies.items()},
        "tokens_per_second": _speed(replies),
        "seconds": seconds,
    }

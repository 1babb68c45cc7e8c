"""Prints an answer: text as it arrives, in whole words; origins in color; statistics; JSON."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.text import Text

from kad.cli import stdio
from kad.cli.wrapping import Wrapper
from kad.errors import ServerError, UsageError
from kad.palette import color, style
from kad.text.prompts import decode
from kad.tracing.terminal import colored
from kad.words import counted

if TYPE_CHECKING:
    from kad.engines.load import Loaded
    from kad.method.composition import Composition
    from kad.method.speculation.statistics import SpeculationStatistics
    from kad.text.answer import Answer, LiveAnswer, Piece

_REMARKS = {
    "length": "stopped after {tokens}; --max-new-tokens allows more",
    "context": "stopped: the models' context is full",
}


@contextmanager
def whole_words() -> Iterator[Callable[[str], None]]:
    """`write`, which ends lines between words if standard output is a terminal."""
    if not sys.stdout.isatty():
        yield stdio.write
        return
    wrapper = Wrapper(stdio.write, lambda: shutil.get_terminal_size().columns)
    try:
        yield wrapper.push
    finally:
        wrapper.finish()


def show(answering: LiveAnswer, live: bool) -> Answer:
    """Print the answer, as it arrives or when it is finished."""
    with whole_words() as write:
        problem = _take(answering, lambda piece: write(piece.text) if live else None)
        if not live:
            write(answering.answer.text)
    stdio.write("\n")
    if problem is not None:
        raise problem
    return answering.answer


def _take(answering: LiveAnswer, see: Callable[[Piece], object]) -> ServerError | None:
    """Take all pieces. The problem, if the server of a base model goes away: what has come is shown first."""
    try:
        for piece in answering:
            see(piece)
    except ServerError as problem:
        return problem
    return None


def require_origins(composition: Composition) -> None:
    """Raise UsageError for a product rule: its tokens do not come from one model or the other."""
    from kad.method.rules import CascadeRule

    if not isinstance(composition.rule, CascadeRule):
        raise UsageError(
            f"Rule {composition.rule} multiplies the models, so no token comes from one of them: no --color."
        )


def show_origins(answering: LiveAnswer) -> Answer:
    """Generate, then print the text in the colors of its origins, and the legend on standard error."""
    with stdio.stderr().status("Generating ...", spinner="dots") as status:
        text: list[str] = []

        def show_end(piece: Piece) -> None:
            text.append(piece.text)
            status.update(Text(f"Generating ... {' '.join(''.join(text[-50:]).split())[-50:]}"))

        problem = _take(answering, show_end)
    answer = answering.answer
    print_origins([(piece.text, piece.base_share or 0.0, piece.deferred_mass or 0.0) for piece in answer.pieces])
    if problem is not None:
        raise problem
    return answer


def print_origins(tokens: Sequence[tuple[str, float, float]]) -> None:
    """Print a text in the colors of its origins, and the legend on standard error.

    Args:
        tokens: each with its text, the base model's share, and the deferred mass at its position.
    """
    if tokens:
        stdio.stdout().print(colored((text, share) for text, share, _ in tokens), soft_wrap=True)
        base_share, deferred_mass = sum(share for _, share, _ in tokens), sum(mass for _, _, mass in tokens)
        stdio.stderr().print(legend(base_share / len(tokens), deferred_mass / len(tokens)), soft_wrap=True)


def legend(base_share: float, deferred_mass: float) -> Text:
    """What the colors mean, and the share of each model. The numbers are means over the text."""
    text = Text.assemble(
        ("base model", style(1.0)),
        (f" {base_share:.0%}  ", "dim"),
        *(("█", color(1 - step / 7)) for step in range(8)),
        "  ",
        ("aligned model", style(0.0)),
        (f" {1 - base_share:.0%}", "dim"),
        (f"   deferred mass {deferred_mass:.2f}", "dim"),
    )
    text.no_wrap = True
    return text


def remark(answer: Answer) -> None:
    """Say on standard error why a text ended, unless the model ended it."""
    if answer.finish_reason in _REMARKS:
        stdio.message(f"[{_REMARKS[answer.finish_reason].format(tokens=counted(len(answer.token_ids), 'token'))}]")


def as_dict(model: Loaded, answer: Answer, load_seconds: float) -> dict[str, Any]:
    """The answer as JSON, with the pair that gave it."""
    told = answer.to_dict()
    return {
        "schema": "kad-answer/2",
        **told,
        "tokens": [decode(model.tokenizer, [token], special=True) for token in answer.token_ids],
        "timings": {"load": load_seconds, **told["timings"]},
        "rule": str(model.rule),
        "deferral_temperature": model.composition.deferral_temperature,
        "models": {role: stdio.name_of(part) for role, part in model.config.model_sources().items()},
    }


def speed_up(model: Loaded, answer: Answer) -> dict[str, float]:
    """The speed of plain decoding, from a few steps, and how much faster this answer was. Empty without drafts."""
    from kad.text.scoring import plain_step_seconds

    step = None if answer.statistics is None else plain_step_seconds(model, model.composition, answer)
    if step is None:
        return {}
    plain = answer.first_token + (len(answer.token_ids) - 1) * step
    return {"plain_tokens_per_second": len(answer.token_ids) / plain, "speed_up": plain / answer.seconds}


def show_statistics(model: Loaded, answer: Answer) -> None:
    """The figures of one answer, as a small table on standard error."""
    from kad.engines.pair import pair_of

    context = pair_of(model).context_length
    total = len(answer.prompt_ids) + len(answer.token_ids)
    of_context = f", {total:,} of {context:,} positions" if context else ""
    times = f"{answer.seconds:.2f} s, the first token after {answer.first_token:.2f} s"
    rows = [
        ("rule", str(model.rule)),
        ("tokens", f"{len(answer.token_ids)} after a prompt of {len(answer.prompt_ids)}{of_context}"),
        ("speed", f"{answer.tokens_per_second:.1f} tokens/s: {times}"),
    ]
    if answer.seed is not None:
        rows.append(("seed", str(answer.seed)))
    if answer.statistics is None:
        rows.append(("speculation", f"off: {answer.drafting.reason}"))
    else:
        rows.append(("speculation", f"draft tokens {answer.drafting.draft_tokens}: {answer.drafting.reason}"))
        rows += _speculation_rows(answer.statistics)
    if gain := speed_up(model, answer):
        plain = f"{gain['plain_tokens_per_second']:.1f} tokens/s, from a few steps timed now"
        rows.append(("speed-up", f"{gain['speed_up']:.2f} times plain decoding ({plain})"))
    stdio.stderr().print(stdio.facts(rows, "dim"))


def _speculation_rows(counts: SpeculationStatistics) -> Iterator[tuple[str, str]]:
    if counts.drafted:
        yield "drafts", f"{counts.accepted} of {counts.drafted} accepted ({counts.acceptance_rate:.0%})"
        yield "windows", f"{counts.windows}, {counts.tokens_per_window:.2f} tokens for each base forward"
        yield "accepted", "  ".join(f"{length}:{count}" for length, count in sorted(counts.lengths.items()))
    total = counts.seconds_total or 1.0
    parts = {"draft": counts.seconds_draft, "verify": counts.seconds_verify, "other": counts.seconds_other}
    yield "time", ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in parts.items())

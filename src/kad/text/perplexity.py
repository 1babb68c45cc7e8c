"""The perplexity of a text of any length: under pi, and under each model alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kad.engines.pair import pair_of
from kad.errors import OptionError, UsageError
from kad.text.prompts import start_token, text_ids
from kad.text.score import score_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kad.engines.load import Loaded

PART = 1024
"""Tokens that are read at once, where the models allow it."""


@dataclass(frozen=True)
class Perplexity:
    """What the models think of a text.

    Attributes:
        tokens: of the text.
        words: of the text, as lm-eval counts them: what stands between white space.
        bytes: of the text in UTF-8.
        composed, base, aligned: the log-probability of the text, in nats.
        deferred_mass: the mean of alpha over the tokens. None for product rules.
        acceptance: the mean of beta over the tokens.
    """

    tokens: int
    words: int
    bytes: int
    composed: float
    base: float
    aligned: float
    deferred_mass: float | None
    acceptance: float

    def of(self, who: str = "composed", unit: str = "tokens") -> float:
        """The perplexity exp(-log-probability / number of units).

        Args:
            who: "composed", "base" or "aligned".
            unit: "tokens", "words" or "bytes".
        """
        exponent: float = -getattr(self, who) / getattr(self, unit)
        return math.exp(exponent) if exponent < 700 else math.inf

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def perplexity(
    model: Loaded,
    text: str | Sequence[int],
    *,
    part_length: int | None = None,
    rule: Any = None,
    deferral_temperature: float | None = None,
) -> Perplexity:
    """The log-probability of a text that stands alone, without a chat template.

    A long text is read in parts, one after the other. The first token of a part is predicted from the token before it;
    the first token of the text from the start token (or the end token, where there is none). These are the rolling
    log-likelihoods of lm-eval.

    Args:
        model: a pair, as `kad.load` gives it.
        text: the text, or its token ids.
        part_length: how many tokens are read at once. The default is 1,024, or the models' context if that is shorter.
        rule: replaces the model's own rule.
        deferral_temperature: replaces the model's own deferral temperature.

    Raises:
        UsageError: an empty text, or a part that is longer than the models' context.

    Example:
        >>> kad.perplexity(model, "First, 5 + 8 = 13.").of("composed", "words")
    """
    pair = pair_of(model)
    pair.needs_logits("kad.perplexity")
    tokenizer = pair.tokenizer
    ids = text_ids(tokenizer, text)
    if not ids:
        raise UsageError("The text is empty: the tokenizer makes no token of it.")
    most = pair.context_length or PART
    size = min(PART, most) if part_length is None else part_length
    if not 1 <= size <= most:
        raise OptionError(f"`part_length` must be from 1 to the models' context of {most}, but is {size}.")
    start = start_token(tokenizer)
    composition = pair.composed_by(rule, deferral_temperature)
    scores = [score_tokens(pair, before, part, composition) for before, part in _parts([start, *ids], size)]

    def total(name: str) -> float:
        return float(sum(getattr(score, name).double().sum() for score in scores))

    written = text if isinstance(text, str) else tokenizer.decode(ids)
    return Perplexity(
        tokens=len(ids),
        words=len(written.split()) or 1,
        bytes=len(written.encode()),
        composed=total("log_pi"),
        base=total("log_p"),
        aligned=total("log_aligned"),
        deferred_mass=None if scores[0].deferred_mass is None else total("deferred_mass") / len(ids),
        acceptance=total("acceptance") / len(ids),
    )


def _parts(ids: Sequence[int], size: int) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """What stands before each part (one token), and the part."""
    for first in range(1, len(ids), size):
        yield ids[first - 1 : first], ids[first : first + size]

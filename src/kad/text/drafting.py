"""Whether the aligned model drafts, and how many tokens at a time, if the caller does not say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from kad.errors import OptionError
from kad.method import defaults
from kad.method.speculation.windows import AUTO
from kad.options import Option

if TYPE_CHECKING:
    from kad.engines.pair import Pair

MAX_DRAFT_TOKENS = 64
PAYS_BELOW = 0.5
"""Drafting costs about this share of a base step per token; above it, even a good draft hardly pays."""


@dataclass(frozen=True)
class Drafting:
    """How many tokens to draft at a time, and why.

    Attributes:
        draft_tokens: a number, "auto" (measured and chosen while it runs), or 0 for plain decoding.
        reason: the reason in words.
    """

    draft_tokens: int | str
    reason: str

    @property
    def speculates(self) -> bool:
        """Whether anything is drafted."""
        return self.draft_tokens != 0


def check(draft_tokens: int | str | None) -> int | str | None:
    """The number of tokens to draft, as a number or "auto". None means that the caller does not say.

    Raises:
        UsageError: anything else.
    """
    if draft_tokens is None or draft_tokens == AUTO:
        return draft_tokens
    number = int(draft_tokens) if re.fullmatch(r"[0-9]{1,3}", str(draft_tokens)) else -1
    if not 0 <= number <= MAX_DRAFT_TOKENS:
        raise OptionError(
            f"`num_draft_tokens` must be a number from 0 to {MAX_DRAFT_TOKENS} or auto, but is {draft_tokens!r}."
        )
    return number


DraftTokens = Annotated[
    int | str | None,
    Option(
        "Speculative decoding: the aligned model drafts N tokens at a time. auto measures and chooses N, so a seed "
        "does not repeat a sampled text. 0 is off. The text follows the same distribution.",
        "N|auto|0",
        shown=f"where it should pay: {defaults.draft_tokens(False)}, or {defaults.draft_tokens(True)} when sampling",
        parse=check,
    ),
]


def choose(pair: Pair, draft_tokens: int | str | None, *, sampled: bool) -> Drafting:
    """What the caller asks for. Otherwise draft if the aligned model is much smaller than the base model.

    Args:
        pair: the pair.
        draft_tokens: a number, "auto", 0 for plain decoding, or None.
        sampled: whether tokens are drawn at random.

    Raises:
        UsageError: a value that is none of these.
    """
    number = check(draft_tokens)
    if number is not None:
        return Drafting(number, "as asked")
    if pair.is_one:
        return Drafting(0, "one model has nobody to draft for it")
    facts = pair.facts
    own, base = facts["aligned"].parameters, facts["base"].parameters
    if facts["base"].gives_lists or own is None or base is None:
        return Drafting(defaults.draft_tokens(sampled), "the base model is on a server, which is asked once a window")
    cost = own / base
    if cost >= PAYS_BELOW:
        return Drafting(0, f"the aligned model is too large to draft: {cost:.0%} of the base model's parameters")
    return Drafting(defaults.draft_tokens(sampled), f"the aligned model has {cost:.1%} of the base model's parameters")

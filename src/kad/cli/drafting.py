"""Whether the aligned model drafts (speculative decoding): the option, and the choice where there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kad.errors import UsageError

if TYPE_CHECKING:
    from kad.cli.sampling import Sampling
    from kad.modeling import KadForCausalLM
    from kad.speculation import SpeculationStatistics

MAX_DRAFT_TOKENS = 64
# For a sampled text, where nobody says otherwise: near the best for drafts that are mostly accepted. "auto" follows the
# clock, and where a window ends decides which random numbers a token gets, so the seed would not repeat the text.
SAMPLED_DRAFT_TOKENS = 4
# Drafting costs about this share of a base step per token; above it, even a good draft hardly pays.
PAYS_BELOW = 0.5

DraftTokens = Annotated[
    str | None,
    typer.Option(
        "--draft-tokens",
        metavar="N|auto|0",
        help="Speculative decoding: draft N tokens at a time with the aligned model; auto learns N by the clock, so "
        "that a seed repeats no sampled text; 0 is off. The distribution of the text is the same.",
        show_default=f"where it should pay: auto, or {SAMPLED_DRAFT_TOKENS} when sampling",
    ),
]


@dataclass(frozen=True)
class Plan:
    """How many tokens to draft (None: no speculation), and why."""

    draft_tokens: int | str | None
    reason: str

    def options(self, statistics: SpeculationStatistics) -> dict[str, Any]:
        """Keyword arguments for `model.generate`, which fill `statistics`."""
        if self.draft_tokens is None:
            return {}
        from kad.speculation import speculative

        return {
            "custom_generate": speculative,
            "num_draft_tokens": self.draft_tokens,
            "statistics": statistics,
        }


def parse(draft_tokens: str | None) -> int | str | None:
    """The option's value as a number or "auto"; None where it was not given.

    Raises:
        UsageError: anything else.
    """
    if draft_tokens in (None, "auto"):
        return draft_tokens
    try:
        number = int(str(draft_tokens))
    except ValueError:
        number = -1
    if not 0 <= number <= MAX_DRAFT_TOKENS:
        raise UsageError(
            f"--draft-tokens must be a number from 0 to {MAX_DRAFT_TOKENS} or auto, but is {draft_tokens!r}."
        )
    return number


def plan(model: KadForCausalLM, draft_tokens: str | None, settings: Sampling) -> Plan:
    """The plan that the option asks for; without it, to draft where the aligned model is much the smaller one."""
    asked = parse(draft_tokens)
    if asked == 0:
        return Plan(None, "as asked")
    if asked is not None:
        return Plan(asked, "as asked")
    cost = model.aligned.num_parameters() / model.base.num_parameters()
    if cost >= PAYS_BELOW:
        return Plan(None, f"the aligned model is too large to draft: {cost:.0%} of the base model's parameters")
    if not _can_roll_back(model):
        return Plan(None, "a model's cache cannot take rejected drafts back")
    count = SAMPLED_DRAFT_TOKENS if settings.draws(model.generation_config) else "auto"
    return Plan(count, f"the aligned model has {cost:.1%} of the base model's parameters")


def _can_roll_back(model: KadForCausalLM) -> bool:
    """Whether the models' own caches allow speculation (recurrent states do not)."""
    from kad.speculation.scorers import CachedModel

    try:
        for role, cache in model.make_cache().parts.items():
            CachedModel(model.parts[role], cache, model.config.vocab_size, model.base.device)
    except UsageError:
        return False
    return True

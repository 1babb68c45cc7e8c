"""The rules with one number per row: they keep exactly the tokens with p_v >= tau.

All of them have one closed form. So a rule is a few numbers, and a batch can have another rule in every row
(`kad.method.rules.row_rules`):

    tau = (a + shift) * exp(offset)        a: 1, max p or max q*, whichever the rule measures by

Only `primal` searches for its number in the row.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from kad.method.rules.rule import ThresholdRule, register

if TYPE_CHECKING:
    from torch import Tensor

    from kad.method.distribution import Distribution

# The first guess of the size of the head with a mass of 1 - b. It grows by this factor until the mass is reached.
_HEAD = 16


class Anchor(IntEnum):
    """What tau is relative to: the whole mass 1, the base model's largest probability, or the aligned model's."""

    ONE = 0
    BASE = 1
    ALIGNED = 2


class Numbers(NamedTuple):
    """A threshold rule as numbers, see the docstring of the module.

    Attributes:
        anchor: an `Anchor`.
        shift: added to the anchor's probability.
        offset: log of a factor. -inf keeps every token, and +inf keeps none.
        whole: 1 if a row is kept as a whole when its largest token is kept, and deferred as a whole otherwise. Else 0.
        budget: the budget of `primal`, which replaces all other numbers. -1 if there is none.
    """

    anchor: int = Anchor.ONE
    shift: float = 0.0
    offset: float = 0.0
    whole: int = 0
    budget: float = -1.0


def probability(default: float, hint: str = "") -> float:
    """A dataclass field that holds a probability, or a difference of two. The hint ends the error of a bad value."""
    return field(default=default, metadata={"range": (0.0, 1.0), "hint": hint})


class NumberRule(ThresholdRule):
    """A threshold rule that can be written as `Numbers`."""

    @property
    @abstractmethod
    def numbers(self) -> Numbers:
        """The rule in numbers."""

    def cutoff(self, base: Distribution, aligned: Distribution) -> Tensor:
        """See `ThresholdRule.cutoff`."""
        rule = self.numbers
        if rule.budget >= 0.0:
            return critical_logit(base, rule.budget)
        cutoff, log_anchor = base.log_z, None
        if rule.anchor == Anchor.BASE:
            # The largest logit itself, so that a shift of 0 keeps the most probable token for every rounding.
            cutoff, log_anchor = base.max_logit, base.log_max
        if rule.anchor == Anchor.ALIGNED:
            cutoff, log_anchor = base.log_z + aligned.log_max, aligned.log_max
        if rule.shift != 0.0 and log_anchor is not None:
            cutoff = cutoff + log_shifted(log_anchor, rule.shift)
        if rule.offset != 0.0:
            cutoff = cutoff + rule.offset
        return all_or_nothing(base, cutoff) if rule.whole else cutoff


@register
@dataclass(frozen=True)
class Dual(NumberRule):
    """Keep v iff p_v >= threshold (the paper's pi^{<λ})."""

    name: ClassVar[str] = "dual"
    summary: ClassVar[str] = "keep the tokens with p >= threshold; the dual approximation of the knapsack"
    source: ClassVar[str] = "Kad (EACL 2026)"
    reads_aligned: ClassVar[bool] = False
    threshold: float = probability(0.4)

    @property
    def numbers(self) -> Numbers:
        return Numbers(offset=log_of(self.threshold))


@register
@dataclass(frozen=True)
class Primal(NumberRule):
    """Defer the tail of p as long as its mass is at most the budget. Keep the critical item and all tokens above it.

    tau is the largest value of p for which the sum of all p_v < tau is at most the budget. So the kept tokens are the
    smallest head of p (in whole groups of ties) with a mass of at least 1 - budget. The budget holds per position.
    """

    name: ClassVar[str] = "primal"
    summary: ClassVar[str] = "defer the tail of p up to a mass of budget; the primal approximation of the knapsack"
    source: ClassVar[str] = "Kad (EACL 2026)"
    reads_aligned: ClassVar[bool] = False
    budget: float = probability(0.9)

    @property
    def numbers(self) -> Numbers:
        return Numbers(budget=self.budget) if self.budget < 1.0 else Numbers(offset=math.inf)


@register
@dataclass(frozen=True)
class Nudging(NumberRule):
    """Keep all tokens of p if max p >= threshold, else defer all."""

    name: ClassVar[str] = "nudging"
    summary: ClassVar[str] = "use p where its largest probability is >= threshold, else q*"
    source: ClassVar[str] = "Nudging (Fei et al. 2025)"
    reads_aligned: ClassVar[bool] = False
    threshold: float = probability(0.4)

    @property
    def numbers(self) -> Numbers:
        return Numbers(offset=log_of(self.threshold), whole=1)


@register
@dataclass(frozen=True)
class ConfidenceBet(NumberRule):
    """Keep v iff p_v >= max q* - margin: v is rejected where q* is surer of its best token by more than the margin."""

    name: ClassVar[str] = "confidence_bet"
    summary: ClassVar[str] = "keep the tokens with p >= max q* - margin"
    source: ClassVar[str] = "Rejection (ACL 2026)"
    margin: float = probability(0.2, hint=" The paper's sign: p >= max q* - margin, so a larger margin keeps more.")

    @property
    def numbers(self) -> Numbers:
        return Numbers(Anchor.ALIGNED, shift=-self.margin)


@register
@dataclass(frozen=True)
class Relative(NumberRule):
    """Keep v iff p_v >= max p - margin. Margin 0 keeps only p's most probable token."""

    name: ClassVar[str] = "relative"
    summary: ClassVar[str] = "keep the tokens with p >= max p - margin"
    source: ClassVar[str] = "Cascades (ICLR 2025), token_v2 in the published code"
    reads_aligned: ClassVar[bool] = False
    margin: float = probability(0.0)

    @property
    def numbers(self) -> Numbers:
        return Numbers(Anchor.BASE, shift=-self.margin)


@register
@dataclass(frozen=True)
class AlignedOnly(NumberRule):
    """Defer every token: pi = q*."""

    name: ClassVar[str] = "aligned_only"
    summary: ClassVar[str] = "defer every token: the aligned model alone"
    source: ClassVar[str] = "one end of every rule"
    reads_aligned: ClassVar[bool] = False

    @property
    def numbers(self) -> Numbers:
        return Numbers(offset=math.inf)


@register
@dataclass(frozen=True)
class BaseOnly(NumberRule):
    """Defer no token: pi = p. With speculation this is ordinary speculative decoding of p."""

    name: ClassVar[str] = "base_only"
    summary: ClassVar[str] = "defer no token: the base model alone"
    source: ClassVar[str] = "the other end of every rule"
    reads_aligned: ClassVar[bool] = False

    @property
    def numbers(self) -> Numbers:
        return Numbers(offset=-math.inf)


def critical_logit(base: Distribution, budget: float | Tensor) -> Tensor:
    """(...,), the logit of the critical item: the first token, by falling p, at which the head's mass is >= 1 - budget.

    If rounding keeps the whole row below 1 - budget, the smallest entry is the critical item. On a CPU only the head is
    sorted. If it is longer than guessed (p is flat), the guess grows, up to the vocabulary.

    Args:
        base: rows of p.
        budget: one for all rows, or one for each row (...,).
    """
    from kad.method.distribution import may_look, precise

    needed = 1.0 - budget if isinstance(budget, float) else 1.0 - budget.unsqueeze(-1)
    log_z, count = base.log_z.unsqueeze(-1), base.vocab_size
    if may_look(base.logits):
        count = min(_HEAD, count)
    while True:
        if count < base.vocab_size:
            logits = base.logits.topk(count, dim=-1).values
        else:
            logits = base.logits.sort(dim=-1, descending=True).values
        reached = (logits - log_z).exp().cumsum(dim=-1, dtype=precise(log_z.device)) >= needed
        if count == base.vocab_size or bool(reached[..., -1].all()):
            break
        count = min(count * _HEAD, base.vocab_size)
    # The number of False before the first True; the cumulative sum rises, so the Trues are a suffix.
    index = (~reached).sum(dim=-1, keepdim=True).clamp(max=count - 1)
    return logits.gather(-1, index).squeeze(-1)


def log_shifted(log_anchor: Tensor, shift: float | Tensor) -> Tensor:
    """log((x + shift) / x) for x = exp(log_anchor). -inf where x + shift <= 0. A shift of 0 gives exactly 0."""
    # 1/x as a power is one launch, where a negation and an exponential are two.
    return (shift * (1.0 / math.e) ** log_anchor).clamp(min=-1.0).log1p()


def all_or_nothing(base: Distribution, cutoff: Tensor) -> Tensor:
    """-inf if the largest logit of the row reaches its cutoff, else +inf."""
    return cutoff.new_full(cutoff.shape, -math.inf).where(base.max_logit >= cutoff, math.inf)


def log_of(x: float) -> float:
    """log x, and -inf for 0."""
    return math.log(x) if x > 0.0 else -math.inf

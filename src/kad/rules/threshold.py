"""The rules that are one number per row: keep exactly the tokens with p_v >= tau.

All of them cut at one closed form, so a rule is a few numbers, and so is a batch in which every row has a rule of its
own (`kad.rules.rows`):

    tau = (a + shift) * exp(offset)        a: 1, max p or max q*, whichever the rule measures by

`primal` alone looks for its number in the row.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from kad.distribution import Distribution, may_look, precise
from kad.rules.base import ThresholdRule, register

# First guess at the size of the head that holds a mass 1 - b; it grows by this factor until it does.
_HEAD = 16


class Anchor(IntEnum):
    """What a rule measures tau by: the whole mass 1, the base model's largest probability, the aligned model's."""

    ONE = 0
    BASE = 1
    ALIGNED = 2


class Numbers(NamedTuple):
    """A threshold rule in numbers, see the module's docstring.

    Attributes:
        anchor: an `Anchor`.
        shift: added to the anchor's probability.
        offset: log of a factor; -inf keeps every token, +inf none.
        whole: 1 if the row is kept whole where its largest token is kept, and deferred whole elsewhere; else 0.
        budget: that of `primal`, which then replaces all the others; -1 if there is none.
    """

    anchor: int = Anchor.ONE
    shift: float = 0.0
    offset: float = 0.0
    whole: int = 0
    budget: float = -1.0


def probability(default: float) -> float:
    """A dataclass field that holds a probability."""
    return field(default=default, metadata={"range": (0.0, 1.0)})


def difference(default: float) -> float:
    """A dataclass field that holds a difference of two probabilities."""
    return field(default=default, metadata={"range": (-1.0, 1.0)})


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
            # The largest logit itself, so that a shift of 0 keeps the most probable token whatever the rounding.
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
        return Numbers(offset=_log(self.threshold))


@register
@dataclass(frozen=True)
class Primal(NumberRule):
    """Defer the tail of p as long as its mass is at most the budget; keep the critical item and all above it.

    tau is the largest value of p whose deferred tail, the sum of all p_v < tau, is at most the budget. So the kept
    set is the smallest head of p (whole groups of ties) with mass >= 1 - budget. The budget holds per position.
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
    """All or nothing: keep p whole where max p >= threshold, else defer whole."""

    name: ClassVar[str] = "nudging"
    summary: ClassVar[str] = "use p where its largest probability is >= threshold, else q*"
    source: ClassVar[str] = "Nudging (Fei et al. 2025)"
    reads_aligned: ClassVar[bool] = False
    threshold: float = probability(0.4)

    @property
    def numbers(self) -> Numbers:
        return Numbers(offset=_log(self.threshold), whole=1)


@register
@dataclass(frozen=True)
class ConfidenceBet(NumberRule):
    """Keep v iff p_v >= max q* + margin: p must beat the proxy's best confidence."""

    name: ClassVar[str] = "confidence_bet"
    summary: ClassVar[str] = "keep the tokens with p >= max q* + margin"
    source: ClassVar[str] = "Rejection (ACL 2026)"
    margin: float = difference(0.0)

    @property
    def numbers(self) -> Numbers:
        return Numbers(Anchor.ALIGNED, shift=self.margin)


@register
@dataclass(frozen=True)
class Relative(NumberRule):
    """Keep v iff p_v >= max p - margin; margin 0 keeps only p's most probable token."""

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
    """Defer no token: pi = p; under speculation, ordinary speculative decoding of p."""

    name: ClassVar[str] = "base_only"
    summary: ClassVar[str] = "defer no token: the base model alone"
    source: ClassVar[str] = "the other end of every rule"
    reads_aligned: ClassVar[bool] = False

    @property
    def numbers(self) -> Numbers:
        return Numbers(offset=-math.inf)


def critical_logit(base: Distribution, budget: float | Tensor) -> Tensor:
    """(...,), the logit of the critical item: the first token, by falling p, at which the head's mass is >= 1 - budget.

    Where rounding keeps the whole row below 1 - budget, the smallest entry is the critical item. On a CPU only the head
    is sorted; where it is longer than guessed (p is flat), the guess grows up to the vocabulary.

    Args:
        base: rows of p.
        budget: one for all rows, or one a row (...,).
    """
    needed = 1.0 - budget.unsqueeze(-1) if isinstance(budget, Tensor) else 1.0 - budget
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
    """log((x + shift) / x) for x = exp(log_anchor); -inf where x + shift <= 0. A shift of 0 gives 0 to the bit."""
    return torch.log1p((shift * torch.exp(-log_anchor)).clamp(min=-1.0))


def all_or_nothing(base: Distribution, cutoff: Tensor) -> Tensor:
    """-inf where the row's largest logit reaches its cutoff, else +inf."""
    return torch.where(base.max_logit >= cutoff, -torch.inf, torch.full_like(cutoff, torch.inf))


def _log(x: float) -> float:
    return math.log(x) if x > 0.0 else -math.inf

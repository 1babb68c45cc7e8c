"""The rules that are one number per row: keep exactly the tokens with p_v >= tau."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from kad.distribution import Distribution
from kad.rules.base import ThresholdRule, register

# First guess at the size of the head that holds a mass 1 - b; it grows by this factor until it does.
_HEAD = 16


def probability(default: float) -> float:
    """A dataclass field that holds a probability."""
    return field(default=default, metadata={"range": (0.0, 1.0)})


def difference(default: float) -> float:
    """A dataclass field that holds a difference of two probabilities."""
    return field(default=default, metadata={"range": (-1.0, 1.0)})


@register
@dataclass(frozen=True)
class Dual(ThresholdRule):
    """Keep v iff p_v >= threshold (the paper's pi^{<λ})."""

    name: ClassVar[str] = "dual"
    summary: ClassVar[str] = "keep the tokens with p >= threshold; the dual approximation of the knapsack"
    source: ClassVar[str] = "Kad (EACL 2026)"
    reads_aligned: ClassVar[bool] = False
    threshold: float = probability(0.4)

    def cutoff(self, base: Distribution, aligned: Distribution) -> Tensor:
        return base.log_z + (math.log(self.threshold) if self.threshold > 0 else -math.inf)


@register
@dataclass(frozen=True)
class Primal(ThresholdRule):
    """Defer the tail of p as long as its mass is at most the budget; keep the critical item and all above it.

    tau is the largest value of p whose deferred tail, the sum of all p_v < tau, is at most the budget. So the kept
    set is the smallest head of p (whole groups of ties) with mass >= 1 - budget. The budget holds per position.
    """

    name: ClassVar[str] = "primal"
    summary: ClassVar[str] = "defer the tail of p up to a mass of budget; the primal approximation of the knapsack"
    source: ClassVar[str] = "Kad (EACL 2026)"
    reads_aligned: ClassVar[bool] = False
    budget: float = probability(0.9)

    def cutoff(self, base: Distribution, aligned: Distribution) -> Tensor:
        if self.budget >= 1.0:
            return torch.full_like(base.log_z, torch.inf)
        return critical_logit(base, self.budget)


@register
@dataclass(frozen=True)
class Nudging(ThresholdRule):
    """All or nothing: keep p whole where max p >= threshold, else defer whole."""

    name: ClassVar[str] = "nudging"
    summary: ClassVar[str] = "use p where its largest probability is >= threshold, else q*"
    source: ClassVar[str] = "Nudging (Fei et al. 2025)"
    reads_aligned: ClassVar[bool] = False
    threshold: float = probability(0.4)

    def cutoff(self, base: Distribution, aligned: Distribution) -> Tensor:
        sure = base.max_logit >= Dual(self.threshold).cutoff(base, aligned)
        return torch.where(sure, -torch.inf, torch.full_like(base.log_z, torch.inf))


@register
@dataclass(frozen=True)
class ConfidenceBet(ThresholdRule):
    """Keep v iff p_v >= max q* + margin: p must beat the proxy's best confidence."""

    name: ClassVar[str] = "confidence_bet"
    summary: ClassVar[str] = "keep the tokens with p >= max q* + margin"
    source: ClassVar[str] = "Rejection (ACL 2026)"
    margin: float = difference(0.0)

    def cutoff(self, base: Distribution, aligned: Distribution) -> Tensor:
        return base.log_z + _log_add(aligned.log_max, self.margin)


@register
@dataclass(frozen=True)
class Relative(ThresholdRule):
    """Keep v iff p_v >= max p - margin; margin 0 keeps only p's most probable token."""

    name: ClassVar[str] = "relative"
    summary: ClassVar[str] = "keep the tokens with p >= max p - margin"
    source: ClassVar[str] = "Cascades (ICLR 2025), token_v2 in the published code"
    reads_aligned: ClassVar[bool] = False
    margin: float = probability(0.0)

    def cutoff(self, base: Distribution, aligned: Distribution) -> Tensor:
        # From the largest logit itself, so that margin 0 keeps the most probable token whatever the rounding.
        return base.max_logit + (_log_add(base.log_max, -self.margin) - base.log_max)


@register
@dataclass(frozen=True)
class AlignedOnly(ThresholdRule):
    """Defer every token: pi = q*."""

    name: ClassVar[str] = "aligned_only"
    summary: ClassVar[str] = "defer every token: the aligned model alone"
    source: ClassVar[str] = "one end of every rule"
    reads_aligned: ClassVar[bool] = False

    def cutoff(self, base: Distribution, aligned: Distribution) -> Tensor:
        return torch.full_like(base.log_z, torch.inf)


@register
@dataclass(frozen=True)
class BaseOnly(ThresholdRule):
    """Defer no token: pi = p; under speculation, ordinary speculative decoding of p."""

    name: ClassVar[str] = "base_only"
    summary: ClassVar[str] = "defer no token: the base model alone"
    source: ClassVar[str] = "the other end of every rule"
    reads_aligned: ClassVar[bool] = False

    def cutoff(self, base: Distribution, aligned: Distribution) -> Tensor:
        return torch.full_like(base.log_z, -torch.inf)


def critical_logit(base: Distribution, budget: float) -> Tensor:
    """(...,), the logit of the critical item: the first token, by falling p, at which the head's mass is >= 1 - budget.

    Only the head is sorted; where it is longer than guessed (p is flat), the guess grows up to the vocabulary.
    Where rounding keeps the whole row below 1 - budget, the smallest positive entry is the critical item.
    """
    count = min(_HEAD, base.vocab_size)
    while True:
        logits, _ = base.top(count)
        reached = (logits - base.log_z.unsqueeze(-1)).exp().cumsum(dim=-1) >= 1.0 - budget
        if count == base.vocab_size or bool(reached[..., -1].all()):
            break
        count = min(count * _HEAD, base.vocab_size)
    # The number of False before the first True; the cumulative sum rises, so the Trues are a suffix.
    index = (~reached).sum(dim=-1).clamp(max=count - 1)
    return logits.gather(-1, index.unsqueeze(-1)).squeeze(-1)


def _log_add(log_x: Tensor, shift: float) -> Tensor:
    """log(x + shift) for x = exp(log_x); -inf where x + shift <= 0. A shift of 0 gives `log_x` back to the bit."""
    return log_x + torch.log1p((shift * torch.exp(-log_x)).clamp(min=-1.0))

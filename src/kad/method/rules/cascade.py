"""The cascades without a threshold: they keep a fraction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kad.method.rules.rule import CascadeRule, register
from kad.method.rules.threshold import critical_logit, probability

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True)
class Mixture(CascadeRule):
    """k_v = weight: pi = weight p + (1 - weight) q*."""

    name: ClassVar[str] = "mixture"
    summary: ClassVar[str] = "weight p + (1 - weight) q*"
    source: ClassVar[str] = "Diverse (static ensemble verification)"
    weight: float = probability(0.5)

    def keep(self, log_p: Tensor, log_aligned: Tensor) -> Tensor:
        return log_p.new_full(log_p.shape, self.weight)


@register
@dataclass(frozen=True)
class LinearProgram(CascadeRule):
    """The LP optimum of the knapsack as a cascade: like `Primal`, but it defers a fraction of the critical item.

    It defers a mass of exactly `budget` at every position. Tokens tied with the critical item share the fraction. It is
    for analysis: a bound on the 0-1 problem, and a worse rule (docs/method.md, "Deferral as a knapsack").
    """

    name: ClassVar[str] = "lp"
    summary: ClassVar[str] = "for analysis: defer a mass of exactly budget, the critical item in part"
    source: ClassVar[str] = "the LP relaxation of Kad's knapsack"
    budget: float = probability(0.9)

    def keep(self, log_p: Tensor, log_aligned: Tensor) -> Tensor:
        from kad.method.distribution import Distribution, precise

        if self.budget >= 1.0:
            return log_p.new_zeros(log_p.shape)
        # In float64: float32 sums the tail of a large vocabulary only to about 1e-6.
        base = Distribution.of(log_p.to(precise(log_p.device)), "log_p")
        p, critical = base.log_probs().exp(), critical_logit(base, self.budget).unsqueeze(-1)
        above, tied = base.logits > critical, base.logits == critical
        missing = 1.0 - self.budget - (p * above).sum(dim=-1, keepdim=True)
        # If rounding keeps even the whole row below the mass, the critical item has probability zero: 0 / 0 keeps it.
        fraction = (missing / (p * tied).sum(dim=-1, keepdim=True)).nan_to_num(1.0).clamp(0.0, 1.0)
        return (above + fraction * tied).to(log_p.dtype)

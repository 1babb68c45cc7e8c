"""The cascades without one threshold for a row: they keep a fraction, or ask q* about each token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kad.method.rules.rule import CascadeRule, register
from kad.method.rules.threshold import critical_logit, log_of, probability

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
class Veto(CascadeRule):
    """`Dual` with a veto of q*: keep v iff p_v >= threshold and q*_v >= plausibility * max q*.

    So a token that p is sure of and q* finds implausible is deferred. No rule that reads p alone can see it.
    """

    name: ClassVar[str] = "veto"
    summary: ClassVar[str] = "keep the tokens with p >= threshold and q* >= plausibility max q*"
    source: ClassVar[str] = "kad's own: dual, with the filter that CD and AAD apply to products"
    threshold: float = probability(0.4)
    plausibility: float = probability(0.1)

    def keep(self, log_p: Tensor, log_aligned: Tensor) -> Tensor:
        plausible = log_aligned >= log_aligned.amax(dim=-1, keepdim=True) + log_of(self.plausibility)
        return ((log_p >= log_of(self.threshold)) & plausible).to(log_p.dtype)


@register
@dataclass(frozen=True)
class Blend(CascadeRule):
    """Keep p where max p >= threshold, else pi = (1 - a) p + a q*, where a weighs how sure both models are.

    a = min(1, max q* / (max p + max q*) + agreement * p(argmax q*)). Of tokens that tie for max q*, the one with the
    largest p counts. The formula is that of the authors' published code (`--blend_alpha auto`). Their code reads only
    the 100 most probable tokens of each model, and takes the most probable token of the blend.
    """

    name: ClassVar[str] = "blend"
    summary: ClassVar[str] = "use p where its largest probability is >= threshold, else mix by how sure both models are"
    source: ClassVar[str] = "BlendIn (Findings of ACL 2026)"
    threshold: float = probability(0.4)
    agreement: float = probability(0.1)

    def keep(self, log_p: Tensor, log_aligned: Tensor) -> Tensor:
        top, aligned_top = log_p.amax(dim=-1, keepdim=True), log_aligned.amax(dim=-1, keepdim=True)
        of_aligned = log_p.where(log_aligned == aligned_top, -math.inf).amax(dim=-1, keepdim=True).exp()
        # max q* / (max p + max q*)
        weight = ((aligned_top - top).sigmoid() + self.agreement * of_aligned).clamp(max=1.0)
        return (1.0 - weight).where(top < log_of(self.threshold), 1.0).expand_as(log_p)


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

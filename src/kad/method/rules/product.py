"""The products: pi_v ∝ p_v^a (q*_v / q_v)^b and similar rules. They need the reference model q."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from kad.method.rules.rule import ProductRule, register
from kad.method.rules.threshold import log_of, probability

if TYPE_CHECKING:
    from torch import Tensor


def _exponent(default: float, lowest: float = 0.0) -> float:
    return field(default=default, metadata={"range": (lowest, math.inf)})


@register
@dataclass(frozen=True)
class Product(ProductRule):
    """pi_v ∝ p_v^base (q*_v / q_v)^aligned on the tokens with q*_v >= plausibility * max q*.

    The filter is that of AAD, which has no p: there, q*/q is maximized where q*_v >= 0.1 max q* (`base=0` and greedy
    decoding). That the filter reads q* is what its authors say; the 0.1 was read second-hand.
    """

    name: ClassVar[str] = "product"
    summary: ClassVar[str] = "p^base (q*/q)^aligned where q* >= plausibility max q*; needs the reference model"
    source: ClassVar[str] = "EFT (Mitchell et al. 2024), Proxy (Liu et al. 2024); plausibility: AAD (ICML 2026)"
    base: float = _exponent(1.0)
    aligned: float = _exponent(1.0)
    plausibility: float = probability(0.0)

    def combine(self, log_p: Tensor, log_aligned: Tensor, log_reference: Tensor) -> Tensor:
        weights = _power(log_p, self.base) + _power(log_aligned, self.aligned)
        return _plausible(weights + _inverse_power(log_reference, self.aligned), log_aligned, self.plausibility)


@register
@dataclass(frozen=True)
class Experts(ProductRule):
    """pi_v ∝ p_v^base q*_v^aligned. Exponents may be negative: where the same model has two prompts, it is guidance.

    With the exponents -w and 1 + w it is classifier-free guidance if the base model's prompt lacks the instruction,
    and context-aware decoding if it lacks the context.
    """

    name: ClassVar[str] = "experts"
    summary: ClassVar[str] = "p^base q*^aligned, normalized; needs no reference model"
    source: ClassVar[str] = "CFG (Sanchez et al. 2024), CAD (Shi et al. 2024)"
    needs_reference: ClassVar[bool] = False
    base: float = _exponent(1.0, -math.inf)
    aligned: float = _exponent(1.0, -math.inf)

    def combine(self, log_p: Tensor, log_aligned: Tensor, log_reference: Tensor | None) -> Tensor:
        return _signed_power(log_p, self.base) + _signed_power(log_aligned, self.aligned)


@register
@dataclass(frozen=True)
class ImplicitReward(ProductRule):
    """pi_v ∝ p_v q*_v / q_v: the reward that turned q into q*, applied to p."""

    name: ClassVar[str] = "implicit_reward"
    summary: ClassVar[str] = "p q*/q, normalized: product with both exponents 1; needs the reference model"
    source: ClassVar[str] = "EFT (Mitchell et al. 2024), Proxy (Liu et al. 2024)"

    def combine(self, log_p: Tensor, log_aligned: Tensor, log_reference: Tensor) -> Tensor:
        return Product(1.0, 1.0).combine(log_p, log_aligned, log_reference)


@register
@dataclass(frozen=True)
class Contrastive(ProductRule):
    """pi_v ∝ p_v^(1 + weight) / q_v^weight on the tokens with p_v >= plausibility * max p; q* only drafts."""

    name: ClassVar[str] = "contrastive"
    summary: ClassVar[str] = "p^(1+weight) / q^weight where p >= plausibility max p; needs the reference model"
    source: ClassVar[str] = "CD (Li et al. 2023; O'Brien and Lewis 2023)"
    weight: float = _exponent(0.5)
    plausibility: float = probability(0.1)

    def combine(self, log_p: Tensor, log_aligned: Tensor, log_reference: Tensor) -> Tensor:
        weights = _power(log_p, 1.0 + self.weight) + _inverse_power(log_reference, self.weight)
        return _plausible(weights, log_p, self.plausibility)


def _plausible(weights: Tensor, log_x: Tensor, share: float) -> Tensor:
    """Log-weights (..., vocab) in which tokens with x < share * max x have probability zero.

    They are lowered, not -inf: where a mask leaves implausible tokens only, their order survives it.
    """
    from kad.method.distribution import EXCLUDED

    if share == 0:
        return weights
    return weights + EXCLUDED * (log_x < log_x.amax(dim=-1, keepdim=True) + log_of(share)).to(log_x.dtype)


def _power(log_x: Tensor, exponent: float) -> Tensor:
    """exponent * log x with 0^0 = 1. 0 to the power of an exponent that would underflow stays 0."""
    import torch

    tiny = torch.finfo(log_x.dtype).tiny
    return max(exponent, tiny) * log_x if exponent > 0 else torch.zeros_like(log_x)


def _signed_power(log_x: Tensor, exponent: float) -> Tensor:
    return _power(log_x, exponent) if exponent >= 0 else _inverse_power(log_x, -exponent)


def _inverse_power(log_x: Tensor, exponent: float) -> Tensor:
    """-exponent * log x. Where x = 0 the ratio is undefined, and the token is excluded (-inf)."""
    if exponent == 0:
        return log_x.new_zeros(log_x.shape)
    return (-exponent * log_x).masked_fill(log_x == -math.inf, -math.inf)

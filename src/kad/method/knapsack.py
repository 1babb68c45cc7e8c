"""Deferral as a 0-1 knapsack: solutions, bounds and certificates, for analysis and as the truth in tests.

The items are the tokens. Deferring token v saves the expected loss `c_v = -p_v log p_v` (its value, in nats). It spends
the mass `w_v = p_v` (its weight) of a budget b:

    max_d  sum_v d_v c_v   s.t.  sum_v d_v w_v <= b,   d in {0,1}^V

The density of an item is `c/w = -log p`. So filling greedily by falling density means filling by rising p, and greedy,
linear and thresholded defer a tail of p. Everything is computed in float64. Source: Hammal et al., "Kad", EACL 2026.
The bounds are Dantzig's (1957) and Everett's (1963).

Shapes: `log_p` is `(..., V)`, log-probabilities that sum to one (`-inf` allowed); deferrals are `(..., V)` in [0, 1];
values, weights and bounds are `(...)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kad.errors import UsageError
from kad.method.knapsack_exact import Cover, solve_cover
from kad.method.rules.rule import CascadeRule
from kad.method.rules.threshold import probability

TOLERANCE = 1e-6
"""Nats within which `exact` proves its optimum by default. Weights are never rounded: the search is on floats."""


@dataclass(frozen=True)
class Solution:
    """A deferral for each position, its value, and a bound that no deferral of the same budget can exceed."""

    deferred: Tensor
    value: Tensor
    weight: Tensor
    bound: Tensor

    @property
    def gap(self) -> Tensor:
        """Certified optimality gap `bound - value >= 0` in nats, `(...)`: the optimum is at most this far away."""
        return (self.bound - self.value).clamp(min=0)


@dataclass(frozen=True)
class CriticalItem:
    """Where the budget ends: the lightest tokens that do not all fit. They all have the weight `weight`.

    `tail` is the mass of all lighter tokens (what greedy defers). `group` is the mass of the tokens with exactly this
    weight. `fraction` is the share of the group that still fits. If all tokens fit (b >= 1), the weight is inf.
    """

    weight: Tensor
    tail: Tensor
    group: Tensor
    fraction: Tensor


def item_values(log_p: Tensor) -> Tensor:
    """`c = -p log p` in nats, `(..., V)`; zero where p is zero."""
    values: Tensor = torch.special.entr(_weights(log_p))
    return values


def value(log_p: Tensor, deferred: Tensor) -> Tensor:
    """Expected loss shed by a deferral, `sum_v d_v c_v`, `(...)` nats."""
    return (deferred * item_values(log_p)).sum(-1)


def weight(log_p: Tensor, deferred: Tensor) -> Tensor:
    """Mass spent by a deferral, `sum_v d_v p_v`, `(...)`: the alpha of the cascade."""
    return (deferred * _weights(log_p)).sum(-1)


def critical_item(log_p: Tensor, budget: float) -> CriticalItem:
    """The critical item of each position at `budget`. Tokens of equal p form one group, so sort order has no effect."""
    weights = _weights(log_p)
    ascending = weights.sort(-1).values
    filled = ascending.cumsum(-1)
    over = filled > budget if budget < 1 else torch.zeros_like(filled, dtype=torch.bool)
    first = over.to(torch.int8).argmax(-1, keepdim=True)
    tau = torch.where(over.any(-1), ascending.gather(-1, first).squeeze(-1), torch.inf)
    tail = torch.where(weights < tau[..., None], weights, 0.0).sum(-1)
    group = torch.where(weights == tau[..., None], weights, 0.0).sum(-1)
    fraction = torch.where(group > 0, (budget - tail) / group, 0.0).clamp(0, 1)
    return CriticalItem(tau, tail, group, fraction)


def greedy(log_p: Tensor, budget: float) -> Solution:
    """The primal approximation: defer the lightest tokens up to the critical item. It is always feasible.

    Continuing after the critical item would add nothing, because later items are heavier. Tied critical tokens are all
    kept.
    """
    tau = critical_item(log_p, budget).weight
    deferred = (_weights(log_p) < tau[..., None]).double()
    return _certified(log_p, deferred, budget)


def linear(log_p: Tensor, budget: float) -> Solution:
    """The LP optimum: greedy plus the fraction of the critical item that fits. Tied tokens share it equally.

    It spends exactly `min(b, 1)`. Its value is the Dantzig bound, so its gap is zero.
    """
    deferred = _linear_deferral(log_p, critical_item(log_p, budget))
    optimum = value(log_p, deferred)
    return Solution(deferred, optimum, weight(log_p, deferred), optimum)


def thresholded(log_p: Tensor, threshold: float, budget: float) -> Solution:
    """The dual approximation: defer v iff `p_v < threshold`, certified against the optimum at `budget`.

    It has no budget. Its weight may exceed `budget`, and then its value may exceed the bound (gap 0). It is optimal for
    the mass that it spends [Everett 1963]: `lagrangian_bound` at its own weight equals its value.
    """
    return _certified(log_p, (_weights(log_p) < threshold).double(), budget)


def exact(log_p: Tensor, budget: float, *, tolerance: float = TOLERANCE, max_states: int = 256) -> Solution:
    """The 0-1 optimum, proven to within `tolerance` nats, or as far as `max_states` partial solutions allow.

    The result is always feasible and `bound` is always a proof. `gap` says how much is not proven. Rows are solved one
    by one. A row takes about 10 ms where p is sharp, and seconds where p is flat. So it is for analysis, not for
    decoding.
    """
    if not tolerance >= 0:
        raise UsageError(f"tolerance must be >= 0 nats, but is {tolerance}. Give 1e-9 for a tighter proof.")
    weights = _weights(log_p)
    flat = weights.reshape(-1, weights.shape[-1]).cpu()
    covers = [_row_cover(row, budget, tolerance, max_states) for row in flat]
    kept = torch.stack([cover.kept for cover in covers])
    proven = torch.stack([cover.bound for cover in covers])
    deferred = (1.0 - kept.double()).reshape(weights.shape).to(weights.device)
    total = item_values(log_p).sum(-1)
    bound = total - proven.reshape(total.shape).to(weights.device)
    return Solution(deferred, value(log_p, deferred), weight(log_p, deferred), bound)


@dataclass(frozen=True)
class Exact(CascadeRule):
    """The exact 0-1 optimum as a cascade, for analysis. It is too slow for decoding, so it is not in the registry.

    It is no threshold rule: it may keep a light token and defer a heavier one if this fills the budget better.
    """

    name: ClassVar[str] = "exact"
    summary: ClassVar[str] = "for analysis: the exact optimum of the knapsack"
    source: ClassVar[str] = "the 0-1 knapsack of Kad (EACL 2026)"
    budget: float = probability(0.9)

    def keep(self, log_p: Tensor, log_aligned: Tensor) -> Tensor:
        """1 for the tokens that the optimum keeps, else 0."""
        return (1.0 - exact(log_p, self.budget).deferred).to(log_p.dtype)


def dantzig_bound(log_p: Tensor, budget: float) -> Tensor:
    """An upper bound on the 0-1 optimum, `(...)` nats: the value of the LP optimum."""
    return linear(log_p, budget).value


def lagrangian_bound(log_p: Tensor, threshold: float, budget: float) -> Tensor:
    """The upper bound `mu b + sum_v max(0, c_v - mu w_v)` at the multiplier `mu = -log threshold`, `(...)` nats.

    It is smallest at a threshold equal to the critical item's p, where it equals the Dantzig bound. The deferral of
    `thresholded` attains the maximum in it. This is the origin of the dual rule.
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"threshold must lie in (0, 1] for a multiplier -log(threshold) >= 0, but is {threshold}.")
    mu = -torch.tensor(threshold, dtype=torch.float64).log()
    relaxed = (item_values(log_p) - mu * _weights(log_p)).clamp(min=0).sum(-1)
    return relaxed + mu * budget


def _weights(log_p: Tensor) -> Tensor:
    return log_p.double().exp()


def _linear_deferral(log_p: Tensor, critical: CriticalItem) -> Tensor:
    weights = _weights(log_p)
    tau = critical.weight[..., None]
    at_tau = torch.where(weights == tau, critical.fraction[..., None], 0.0)
    return torch.where(weights < tau, 1.0, at_tau)


def _certified(log_p: Tensor, deferred: Tensor, budget: float) -> Solution:
    bound = dantzig_bound(log_p, budget)
    return Solution(deferred, value(log_p, deferred), weight(log_p, deferred), bound)


def _row_cover(weights: Tensor, budget: float, tolerance: float, max_states: int) -> Cover:
    """The complement of deferring: keep at least the mass `total - b` with the least loss."""
    need = float(weights.sum()) - budget if budget < 1 else 0.0
    return solve_cover(weights, need, tolerance, max_states)

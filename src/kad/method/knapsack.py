"""Deferral as a 0-1 knapsack: solutions, bounds and certificates, for analysis and as the truth in tests.

The items are the tokens. Deferring token v saves the expected loss `c_v = -p_v log p_v` (its value, in nats). It spends
the mass `w_v = p_v` (its weight) of a budget b:

    max_d  sum_v d_v c_v   s.t.  sum_v d_v w_v <= b,   d in {0,1}^V

The density of an item is `c/w = -log p`. So filling greedily by falling density means filling by rising p, and greedy,
linear and thresholded defer a tail of p. Everything is computed in float64. Source: Hammal et al., "Kad", EACL 2026.
The bounds are Dantzig's (1957) and Everett's (1963). In order: what a deferral is worth; the greedy, linear, dual and
exact solutions; the bounds; and last the solver behind the exact one.

Shapes: `log_p` is `(..., V)`, log-probabilities that sum to one (`-inf` allowed); deferrals are `(..., V)` in [0, 1];
values, weights and bounds are `(...)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kad.errors import UsageError
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
    # The complement of deferring: keep at least the mass `total - b` with the least loss.
    needs = [float(row.sum()) - budget if budget < 1 else 0.0 for row in flat]
    covers = [_solve_cover(row, need, tolerance, max_states) for row, need in zip(flat, needs, strict=True)]
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


# ---------------------------------------------------------------------- the exact solver
#
# One position at a time, on floats, with a bound on what is not searched. It solves the complement of the knapsack,
# which is small: which tokens to *keep*, so that they have at least the mass `need = 1 - b` and the least loss `sum
# c_v`. It takes tokens in order of falling p (rising loss per mass). The search holds a list of partial solutions. It
# drops a solution if another one keeps as much mass for less loss, or if its bound cannot beat the best solution so far
# (Nemhauser and Ullmann 1969, with Dantzig's bound). The bound of a partial solution and its greedy completion differ
# by at most the loss of one later, lighter token. So the search ends when the tokens are light.


@dataclass(frozen=True)
class _Cover:
    """`kept` `(V,)` bool; `loss` of the kept tokens; `bound`, the least loss any cover can have (both 0-d, nats)."""

    kept: Tensor
    loss: Tensor
    bound: Tensor


@dataclass(frozen=True)
class _Items:
    """The tokens by falling p, with running sums that start at zero."""

    mass: Tensor
    loss: Tensor
    density: Tensor
    mass_sum: Tensor
    loss_sum: Tensor


@dataclass(frozen=True)
class _States:
    """Partial solutions over the first tokens: mass kept, loss so far, parent state, and whether the last was kept."""

    mass: Tensor
    loss: Tensor
    parent: Tensor
    kept: Tensor

    def __getitem__(self, index: Tensor) -> _States:
        return _States(self.mass[index], self.loss[index], self.parent[index], self.kept[index])


def _solve_cover(weights: Tensor, need: float, tolerance: float, max_states: int) -> _Cover:
    """Tokens to keep, of mass at least `need`, of least loss. `weights` `(V,)` float64 on the CPU."""
    order = weights.argsort(descending=True, stable=True)
    order = order[: int((weights > 0).sum())]
    items = _items(weights[order])
    kept = torch.zeros(weights.shape, dtype=torch.bool)
    if need <= 0 or not len(order):
        return _Cover(kept, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64))
    # Rounding may put the whole mass slightly below `need` at b = 0: then everything is kept.
    search = _Search(items, min(need, float(items.mass_sum[-1])), tolerance, max_states)
    search.run()
    kept[order[search.best_kept()]] = True
    best = torch.tensor(search.best, dtype=torch.float64)
    return _Cover(kept, best, best.clamp(max=search.floor))


class _Search:
    """The list of partial solutions, level by level; level i has decided the first i tokens."""

    def __init__(self, items: _Items, need: float, tolerance: float, max_states: int) -> None:
        self.items, self.need, self.tolerance, self.max_states = items, need, tolerance, max_states
        self.best = float("inf")
        self.floor = float("inf")
        self._levels: list[_States] = []
        self._best_at = (0, 0, 0)

    def run(self) -> None:
        zero = torch.zeros(1, dtype=torch.float64)
        states = _States(zero, zero, torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.bool))
        for level in range(len(self.items.mass) + 1):
            self._levels.append(states)
            open_states = self._promising(states, level)
            if level == len(self.items.mass) or not len(open_states):
                return
            states = _undominated(_branch(states, open_states, self.items, level))

    def _promising(self, states: _States, level: int) -> Tensor:
        """The indices of the states that may still beat the best. The certificate keeps the bounds of the others."""
        completion, bound, stop = _complete(states, level, self.items, self.need)
        leader = int(completion.argmin())
        if completion[leader] < self.best:
            self.best = float(completion[leader])
            self._best_at = (level, leader, int(stop[leader]))
        promising = bound < self.best - self.tolerance
        if not promising.all():
            self.floor = min(self.floor, float(bound[~promising].min()))
        indices = promising.nonzero().squeeze(-1)
        return indices if len(indices) <= self.max_states else self._most_promising(indices, bound)

    def _most_promising(self, indices: Tensor, bound: Tensor) -> Tensor:
        indices = indices[bound[indices].argsort()]
        self.floor = min(self.floor, float(bound[indices[self.max_states]]))
        return indices[: self.max_states].sort().values

    def best_kept(self) -> Tensor:
        """The ranks (in order of falling p) of the tokens that the best solution keeps."""
        level, state, stop = self._best_at
        ranks = list(range(level, stop))
        for depth in range(level, 0, -1):
            states = self._levels[depth]
            if states.kept[state]:
                ranks.append(depth - 1)
            state = int(states.parent[state])
        return torch.tensor(sorted(ranks), dtype=torch.long)


def _items(mass: Tensor) -> _Items:
    loss, zero = torch.special.entr(mass), mass.new_zeros(1)
    sums = [torch.cat([zero, part.cumsum(0)]) for part in (mass, loss)]
    return _Items(mass, loss, -mass.log(), sums[0], sums[1])


def _complete(states: _States, level: int, items: _Items, need: float) -> tuple[Tensor, Tensor, Tensor]:
    """For each state: the loss of its greedy completion, its lower bound, and the token before which completion stops.

    The completion keeps the next tokens until it has the mass. The bound keeps only the needed fraction of the last
    token. Both are infinite for a state that cannot reach the mass.
    """
    start_mass, start_loss = items.mass_sum[level], items.loss_sum[level]
    missing = need - states.mass
    last = len(items.mass)
    # Sums of differently ordered floats differ by an ulp or so; a state that short of the mass has reached it.
    target = missing + start_mass - 1e-15
    stop = torch.searchsorted(items.mass_sum, target).clamp(min=level)
    reached = stop <= last
    stop = stop.clamp(max=last)
    completion = states.loss + items.loss_sum[stop] - start_loss
    before = (stop - 1).clamp(min=level)
    fraction = missing - (items.mass_sum[before] - start_mass)
    density = items.density[before.clamp(max=last - 1)]
    bound = states.loss + items.loss_sum[before] - start_loss + (fraction * density).clamp(min=0)
    bound = torch.where(stop > level, bound, completion)
    return completion.where(reached, torch.inf), bound.where(reached, torch.inf), stop


def _branch(states: _States, indices: Tensor, items: _Items, level: int) -> _States:
    """Every state twice: without and with the token of this level."""
    mass, loss = states.mass[indices], states.loss[indices]
    kept = torch.arange(2).repeat_interleave(len(indices)).bool()
    return _States(
        torch.cat([mass, mass + items.mass[level]]),
        torch.cat([loss, loss + items.loss[level]]),
        indices.repeat(2),
        kept,
    )


def _undominated(states: _States) -> _States:
    """Only the states that keep their mass more cheaply than every state of at least that mass."""
    states = states[states.loss.argsort(stable=True)]
    states = states[states.mass.argsort(descending=True, stable=True)]
    cheapest = states.loss.cummin(0).values
    first = torch.ones_like(states.kept)
    first[1:] = states.loss[1:] < cheapest[:-1]
    return states[first]

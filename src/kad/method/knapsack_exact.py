"""The exact solver behind `kad.method.knapsack.exact`: one position, on floats, with a bound on what it did not search.

It solves the complement of the knapsack, which is small: which tokens to *keep*, so that they have at least the mass
`need = 1 - b` and the least loss `sum c_v`. It takes tokens in order of falling p (rising loss per mass). The search
holds a list of partial solutions. It drops a solution if another one keeps as much mass for less loss, or if its bound
cannot beat the best solution found (Nemhauser and Ullmann 1969, with Dantzig's bound). The bound of a partial solution
and its greedy completion differ by at most the loss of one later, lighter token. So the search ends when the tokens are
light.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cover:
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


def solve_cover(weights: Tensor, need: float, tolerance: float, max_states: int) -> Cover:
    """Tokens to keep, of mass at least `need`, of least loss. `weights` `(V,)` float64 on the CPU."""
    order = weights.argsort(descending=True, stable=True)
    order = order[: int((weights > 0).sum())]
    items = _items(weights[order])
    kept = torch.zeros(weights.shape, dtype=torch.bool)
    if need <= 0 or not len(order):
        return Cover(kept, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64))
    # Rounding may put the whole mass a hair below `need` at b = 0: then everything is kept.
    search = _Search(items, min(need, float(items.mass_sum[-1])), tolerance, max_states)
    search.run()
    kept[order[search.best_kept()]] = True
    best = torch.tensor(search.best, dtype=torch.float64)
    return Cover(kept, best, best.clamp(max=search.floor))


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

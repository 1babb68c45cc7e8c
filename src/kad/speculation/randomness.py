"""The loop's source of randomness: a generator of its own, or torch's global ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class TorchRandomness:
    """See `kad.verification.Randomness`.

    Args:
        seed: of a generator of its own, on the CPU; None takes torch's global generators.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)

    def leading(self, probabilities: Sequence[float]) -> int:
        """Successes before the first failure, one coin per probability."""
        coins = self._coins(len(probabilities))
        failures = (i for i, p in enumerate(probabilities) if coins[i] >= p)
        return next(failures, len(coins))

    def last(self, probabilities: Sequence[float]) -> int:
        """The position (one-based) of the last success, 0 without any."""
        coins = self._coins(len(probabilities))
        successes = (i + 1 for i in reversed(range(len(coins))) if coins[i] < probabilities[i])
        return next(successes, 0)

    def draw(self, weights: Tensor) -> Tensor:
        """An index () in proportion to `weights` (n,), by inversion in float64.

        torch.multinomial draws one exponential per entry instead, which takes as long as a small model's forward.
        """
        mass = weights.to(torch.float64).cumsum(dim=-1)
        device = weights.device if self._generator is None else torch.device("cpu")
        point = torch.rand((), dtype=torch.float64, device=device, generator=self._generator).to(mass.device) * mass[-1]
        # The first index whose cumulative mass is above the point: its own weight is positive.
        index = torch.searchsorted(mass, point, right=True)
        return index.clamp(max=weights.shape[-1] - 1)

    def _coins(self, count: int) -> list[float]:
        coins: list[float] = torch.rand(count, dtype=torch.float64, generator=self._generator).tolist()
        return coins

"""The loop's source of randomness: torch's global generators, so that `torch.manual_seed` governs it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class TorchRandomness:
    """See `kad.verification.Randomness`."""

    def leading(self, probabilities: Sequence[float]) -> int:
        """Successes before the first failure, one coin per probability."""
        coins = torch.rand(len(probabilities), dtype=torch.float64).tolist()
        failures = (i for i, p in enumerate(probabilities) if coins[i] >= p)
        return next(failures, len(coins))

    def last(self, probabilities: Sequence[float]) -> int:
        """The position (one-based) of the last success, 0 without any."""
        coins = torch.rand(len(probabilities), dtype=torch.float64).tolist()
        successes = (i + 1 for i in reversed(range(len(coins))) if coins[i] < probabilities[i])
        return next(successes, 0)

    def draw(self, weights: Tensor) -> Tensor:
        """An index () in proportion to `weights` (n,), by inversion in float64.

        torch.multinomial draws one exponential per entry instead, which takes as long as a small model's forward.
        """
        mass = weights.to(torch.float64).cumsum(dim=-1)
        point = torch.rand((), dtype=torch.float64, device=weights.device) * mass[-1]
        # The first index whose cumulative mass is above the point: its own weight is positive.
        index = torch.searchsorted(mass, point, right=True)
        return index.clamp(max=weights.shape[-1] - 1)

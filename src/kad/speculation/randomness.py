"""The source of randomness of the loop: its own generator, or torch's global ones (`torch.manual_seed`)."""

from __future__ import annotations

import torch
from torch import Tensor

from kad.distribution import precise


class TorchRandomness:
    """See `kad.verification.Randomness`.

    Args:
        seed: the seed of its own generator, on the CPU. None uses torch's global generators.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)

    def leading(self, probabilities: Tensor) -> Tensor:
        """The number () of successes before the first failure, with one coin for each probability (n,)."""
        return (self._uniform(probabilities) < probabilities).to(torch.long).cumprod(dim=-1).sum(dim=-1)

    def last(self, probabilities: Tensor) -> Tensor:
        """The one-based position () of the last success, or 0."""
        successes = (self._uniform(probabilities) < probabilities).to(torch.long)
        return (successes * torch.arange(1, successes.shape[0] + 1, device=successes.device)).amax(dim=-1)

    def draw(self, weights: Tensor) -> Tensor:
        """An index () in proportion to `weights` (n,), by inversion in float64.

        torch.multinomial draws one random number per entry, which takes as long as a forward pass of a small model.
        """
        mass = weights.cumsum(dim=-1, dtype=precise(weights.device))
        # Below the whole mass even after rounding: then the first index whose cumulative mass is above the point
        # exists, and its own weight is positive.
        point = self._uniform(mass[-1:]) * (mass[-1:] * (1.0 - torch.finfo(mass.dtype).eps))
        return torch.searchsorted(mass, point, right=True).clamp_(max=weights.shape[-1] - 1).squeeze(0)

    def _uniform(self, like: Tensor) -> Tensor:
        """(n,), one number in [0, 1) for each of `like`."""
        dtype = precise(like.device)
        if self._generator is None:
            return torch.rand(like.shape, dtype=dtype, device=like.device)
        return torch.rand(like.shape, dtype=dtype, generator=self._generator).to(like.device, non_blocking=True)

"""The source of randomness of the loop: its own generator, or torch's global ones (`torch.manual_seed`)."""

from __future__ import annotations

import torch
from torch import Tensor

from kad.method.distribution import in_blocks, precise

# Random numbers are made so many at a time: one launch and one copy serve several windows.
_AT_ONCE = 64


class TorchRandomness:
    """See `kad.method.verification.Randomness`.

    Args:
        seed: the seed of its own generator, on the CPU. None uses torch's global generators.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)
        self._left = torch.empty(0)

    def leading(self, probabilities: Tensor) -> Tensor:
        """The number () of successes before the first failure, with one coin for each probability (n,)."""
        return (self._take(probabilities) < probabilities).to(torch.long).cumprod(dim=-1).sum(dim=-1)

    def last(self, probabilities: Tensor) -> Tensor:
        """The one-based position () of the last success, or 0."""
        successes = (self._take(probabilities) < probabilities).to(torch.long)
        return (successes * torch.arange(1, successes.shape[0] + 1, device=successes.device)).amax(dim=-1)

    def draw(self, weights: Tensor) -> Tensor:
        """An index () in proportion to `weights` (n,), by inversion in float64. On a CPU first a block, then an entry.

        torch.multinomial draws one random number per entry, which takes as long as a forward pass of a small model.
        """
        blocks = in_blocks(weights)
        if blocks is None:
            return self._invert(weights)
        block = self._invert(blocks.sum(dim=-1))
        return block * blocks.shape[-1] + self._invert(blocks[block])

    def _invert(self, weights: Tensor) -> Tensor:
        mass = weights.cumsum(dim=-1, dtype=precise(weights.device))
        point = self._take(mass[-1:]) * mass[-1:]
        return torch.searchsorted(mass, point, right=True).clamp_(max=weights.shape[-1] - 1).squeeze(0)

    def _take(self, like: Tensor) -> Tensor:
        """(n,), one number in [0, 1) for each of `like`.

        Their product with a mass stays below it even after rounding. Then the first index whose cumulative mass is
        above the product exists, and its own weight is positive.
        """
        count, device = like.shape[0], like.device
        if self._left.shape[0] < count or self._left.device != device:
            fresh = self._uniform(max(count, _AT_ONCE), device)
            self._left = fresh * (1.0 - torch.finfo(fresh.dtype).eps)
        numbers, self._left = self._left[:count], self._left[count:]
        return numbers

    def _uniform(self, count: int, device: torch.device) -> Tensor:
        """(count,), numbers in [0, 1)."""
        dtype = precise(device)
        if self._generator is None:
            return torch.rand(count, dtype=dtype, device=device)
        numbers = torch.rand(count, dtype=dtype, generator=self._generator)
        # A copy from pageable memory would wait for the device.
        return (numbers.pin_memory() if device.type == "cuda" else numbers).to(device, non_blocking=True)

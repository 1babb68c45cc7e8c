"""Rows of logits as real models give them, and a scorer without a model that answers with them."""

from __future__ import annotations

import torch

# How many rows there are before they repeat.
COUNT = 48


def rows(vocab: int, seed: int, count: int = COUNT) -> torch.Tensor:
    """Rows (count, vocab) of a model: many improbable tokens and a short head, a third of the rows saturated.

    The heads are the same for every seed, with other weights: the models of a pair agree in part.
    """
    heads, noise = torch.Generator().manual_seed(7), torch.Generator().manual_seed(seed)
    logits = 2.0 * torch.randn(count, vocab, generator=noise)
    for row in range(count):
        head = torch.randint(vocab, (5,), generator=heads)
        strength = torch.tensor([24.0 if row % 3 == 0 else 17.0, 16.0, 15.0, 14.0, 13.0])
        logits[row, head] += strength + torch.randn(5, generator=noise)
    return logits


class Repeated:
    """A scorer without a model: its rows in turn."""

    reversible = True

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits, self.processed = logits, 0

    def advance(self, ids: torch.Tensor, keep: int) -> torch.Tensor:
        self.processed += len(ids)
        start, count = (self.processed - keep) % len(self.logits), len(self.logits)
        return self.logits[start : start + keep] if start + keep <= count else self.logits[:keep]

    def rollback(self, length: int) -> None:
        self.processed = min(self.processed, length)

    def release(self) -> None:
        """There is no cache."""

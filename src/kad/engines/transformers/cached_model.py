"""The scorer of Transformers: one model with its key-value cache."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Cache, DynamicLayer, PreTrainedModel

from kad.engines.transformers.forward import run_part
from kad.engines.transformers.host import forget, record_past, unforgetting
from kad.errors import UsageError
from kad.tokens.vocabulary import trim


class CachedModel:
    """A Transformers model with its key-value cache.

    Args:
        model: the model.
        cache: its cache. It may already hold a prefix.
        vocab_size: the size of the common vocabulary. Later rows are cut off.
        device: the device of the logits.
        rollback: whether the cache must roll back.

    Raises:
        UsageError: `rollback` with a cache that cannot roll back.
    """

    def __init__(
        self, model: PreTrainedModel, cache: Cache, vocab_size: int, device: torch.device, *, rollback: bool = True
    ) -> None:
        if rollback:
            _check_can_roll_back(cache)
        self.processed = int(cache.get_seq_length())
        self._model, self._cache, self._vocab, self._device = model, cache, vocab_size, device
        self._recording = rollback and record_past(cache, True)

    @property
    def reversible(self) -> bool:
        """See `kad.method.scorer.Scorer`."""
        return all(type(layer) is DynamicLayer for layer in self._cache.layers)

    def advance(self, ids: Tensor, keep: int) -> Tensor:
        """Read ids (n,). Returns logits (keep, vocab) at the last `keep` ids."""
        logits = run_part(self._model, ids.unsqueeze(0), self._cache, logits_to_keep=keep)
        self.processed += ids.shape[0]
        return trim(logits[0, -keep:], self._vocab).to(self._device)

    def rollback(self, length: int) -> None:
        """Keep only the first `length` tokens."""
        surplus = max(self.processed - length, 0)
        if surplus == 0 and (not self._recording or self.processed == 0):
            return
        forget(self._cache, surplus)
        self.processed -= surplus

    def release(self) -> None:
        """Put the cache back into its ordinary state."""
        if self._recording:
            record_past(self._cache, False)


def _check_can_roll_back(cache: Cache) -> None:
    """Layers must be dynamic or plain static. Other kinds cannot drop rejected drafts."""
    stuck = unforgetting(cache)
    if stuck:
        raise UsageError(
            f"Speculation must take rejected drafts back out of the cache, which {', '.join(stuck)} cannot do. Use a "
            "dynamic cache (leave cache_implementation out), or decode without speculation."
        )

"""One model with its cache, as the loop sees it: run on new tokens, roll back to a length."""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, StaticLayer

from kad.errors import UsageError
from kad.vocabulary import trim

# Quantized layers inherit `crop` but keep most of their states out of its reach; recurrent states have no past.
_CROPPABLE = frozenset({"DynamicLayer", "DynamicSlidingWindowLayer", "DynamicIndexedLayer", "DummyLayer"})


class Scorer(Protocol):
    """What the loop asks of a model."""

    processed: int

    def advance(self, ids: Tensor, keep: int) -> Tensor:
        """Process ids (n,) that follow the `processed` ones; logits (keep, vocab) at the last `keep` of them."""

    def rollback(self, length: int) -> None:
        """Forget everything but the first `length` tokens; a `length` not yet reached changes nothing."""


class CachedModel:
    """A Transformers model with its key-value cache.

    Args:
        model: the model.
        cache: its cache; may hold a prefix already.
        vocab_size: the common vocabulary; rows past it are cut off.
        device: where the logits are wanted.

    Raises:
        UsageError: a cache that cannot be rolled back.
    """

    def __init__(self, model: PreTrainedModel, cache: Cache, vocab_size: int, device: torch.device) -> None:
        _check_can_roll_back(cache)
        self.processed = int(cache.get_seq_length())
        self._model, self._cache, self._vocab, self._device = model, cache, vocab_size, device
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._static = [layer for layer in cache.layers if type(layer) is StaticLayer]
        # Sliding-window and convolution layers drop what they no longer need, unless told to wait for a crop, which
        # they then need after every window, even by nothing.
        self._recording = [layer for layer in cache.layers if hasattr(layer, "record_past")]
        for layer in self._recording:
            layer.activate_past_recording()

    def advance(self, ids: Tensor, keep: int) -> Tensor:
        """Process ids (n,); logits (keep, vocab) at the last `keep` of them."""
        options: dict[str, Any] = {"logits_to_keep": keep} if self._keeps_logits else {}
        output = self._model(
            ids.to(self._model.device).unsqueeze(0), past_key_values=self._cache, use_cache=True, **options
        )
        self.processed += ids.shape[0]
        return trim(output.logits[0, -keep:], self._vocab).to(self._device)

    def rollback(self, length: int) -> None:
        """Forget everything but the first `length` tokens."""
        surplus = max(self.processed - length, 0)
        if surplus == 0 and (not self._recording or self.processed == 0):
            return
        if self._static:
            # What lies past the length is masked by causality until it is written over.
            for layer in self._static:
                if layer.is_initialized:
                    layer.cumulative_length.sub_(surplus)
        else:
            self._cache.crop(-surplus)
        self.processed -= surplus

    def release(self) -> None:
        """Hand the cache back as an ordinary one."""
        for layer in self._recording:
            layer.record_past = False


def _check_can_roll_back(cache: Cache) -> None:
    """All layers dynamic or all plain static; every other kind cannot forget rejected drafts."""
    kinds = {type(layer).__name__ for layer in cache.layers}
    stuck = sorted(kinds - _CROPPABLE - {"StaticLayer"})
    if not stuck and "StaticLayer" in kinds and len(kinds) > 1:
        stuck = sorted(kinds)
    if stuck:
        raise UsageError(
            f"Speculation must take rejected drafts back out of the cache, which {', '.join(stuck)} cannot do. Use a "
            "dynamic cache (leave cache_implementation out), or decode without speculation."
        )

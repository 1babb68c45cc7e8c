"""What the models have read of a conversation, so that a turn reads only what is new."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Any

from transformers import DynamicLayer

from kad.cache import KadCache

if TYPE_CHECKING:
    from torch import Tensor

    from kad.modeling import KadForCausalLM


class Past:
    """The caches of the last generation and the tokens they hold."""

    def __init__(self) -> None:
        self._cache: KadCache | None = None
        self._tokens: list[int] = []

    def take(self, model: KadForCausalLM, prompt_ids: Tensor) -> KadCache | None:
        """The caches, cut back to the tokens that this prompt begins with; None where there is nothing to go on from.

        They are gone from here until `keep`: after a generation that fails, nobody knows what they hold.
        """
        cache, self._cache = self._cache, None
        if cache is None or (cache.reference is not None) != model.rule.needs_reference:
            return None
        # The prompt's last token is read anew in any case: what follows it is asked for.
        pairs = zip(self._tokens, prompt_ids[0, :-1].tolist(), strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        cache.crop(shared - cache.get_seq_length())
        return cache if shared else None

    def keep(self, cache: Any, sequences: Tensor) -> None:
        """Remember the caches after a generation of `sequences` (1, positions), if tokens can be taken back from them:
        sliding windows, recurrent states and quantized ones cannot be cut."""
        if isinstance(cache, KadCache) and all(type(layer) is DynamicLayer for layer in cache.layers):
            self._cache, self._tokens = cache, sequences[0, : cache.get_seq_length()].tolist()

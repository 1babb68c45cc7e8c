"""`KadCache`: the key-value caches of all models of a pair, which Transformers handles as one."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache


class KadCache(Cache):
    """One cache for each model. Its `layers` are the layers of all models, base first.

    Transformers' `Cache` works on `layers`. So cropping, beam reordering, resetting and recording for a rollback act on
    all models. The sequence length is that of the aligned model: the base model may have read a prompt of its own.

    Attributes:
        given: whether a user gave it to `generate`, and may use it afterwards.
    """

    given = False

    def __init__(self, base: Cache, aligned: Cache, reference: Cache | None = None) -> None:
        self.base = base
        self.aligned = aligned
        self.reference = reference
        self.offloading = False

    @property
    def parts(self) -> dict[str, Cache]:
        """The caches by role."""
        parts = {"base": self.base, "aligned": self.aligned}
        return parts if self.reference is None else parts | {"reference": self.reference}

    @property
    def layers(self) -> list[Any]:
        """All layers of all models."""
        return [layer for part in self.parts.values() for layer in part.layers]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens the aligned model has read."""
        return int(self.aligned.get_seq_length())

    @property
    def is_compileable(self) -> bool:
        """Always false, because each model makes its own masks for its own cache."""
        return False

    def update(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Not for use. Every model updates its own part.

        Raises:
            TypeError: always.
        """
        raise TypeError("A KadCache is updated by its models, part by part; pass it to a KadForCausalLM.")

"""The engine of Transformers: one model, its facts and scorers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from kad.engines.protocols import Batch, Facts
from kad.engines.transformers.cached_model import CachedModel
from kad.engines.transformers.captured import Backend, CapturedModel, Captures
from kad.engines.transformers.lockstep import Lockstep
from kad.errors import MissingTokenizerError
from kad.method.scorer import Scorer
from kad.pair.model_files import load_tokenizer
from kad.pair.sources import Source


class TransformersModel:
    """One model that Transformers runs; see `kad.engines.protocols.Model`.

    Args:
        model: the loaded model.
        source: where it came from. None for an object without a path.

    Attributes:
        captures: the captured forwards that wait for the next generation.
    """

    def __init__(self, model: PreTrainedModel, source: Source | None = None) -> None:
        self.model, self.source = model.eval(), source
        self.vocab_size = int(model.config.get_text_config().vocab_size)
        self.captures = Captures()

    @property
    def generation_config(self) -> GenerationConfig:
        """See `kad.engines.protocols.Model`."""
        return self.model.generation_config

    @property
    def device(self) -> torch.device:
        """See `kad.engines.protocols.Model`."""
        device: torch.device = self.model.device
        return device

    @cached_property
    def tokenizer(self) -> Any:
        """See `kad.engines.protocols.Model`."""
        if self.source is None:
            raise MissingTokenizerError(
                f"The {type(self.model).__name__} was given as an object without a path, so its tokenizer is not "
                "known. Assign it: pair.tokenizer = ..."
            )
        return load_tokenizer(self.source)

    @cached_property
    def facts(self) -> Facts:
        """See `kad.engines.protocols.Model`."""
        return Facts(
            parameters=int(self.model.num_parameters()),
            context_length=getattr(self.model.config.get_text_config(), "max_position_embeddings", None),
            weight_bytes=int(self.model.get_memory_footprint(return_buffers=False)),
            weights=str(self.model.dtype).removeprefix("torch."),
        )

    def scorer(self, vocab_size: int, device: torch.device, *, rollback: bool = True) -> Scorer:
        """See `kad.engines.protocols.Model`."""
        cache = DynamicCache(config=self.model.config)
        return CachedModel(self.model, cache, vocab_size, device, rollback=rollback)

    def captured(
        self, vocab_size: int, device: torch.device, capacity: int, shapes: Sequence[int], backend: Backend
    ) -> Scorer:
        """See `kad.engines.protocols.Model`."""
        return CapturedModel(self.captures, self.model, capacity, shapes, backend, vocab_size, device)

    def in_step(self, prompts: list[list[int]], vocab_size: int, pad: int) -> Batch:
        """See `kad.engines.protocols.Model`."""
        return Lockstep(self.model, prompts, vocab_size, pad)

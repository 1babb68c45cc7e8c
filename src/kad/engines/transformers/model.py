"""The Transformers engine: one model, and the part of `KadForCausalLM` that implements `kad.engines.protocols`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from kad.engines.protocols import Facts
from kad.engines.transformers.cached_model import CachedModel
from kad.engines.transformers.captured import Backend, CapturedModel, Captures
from kad.engines.transformers.loading import load_model
from kad.method.scorer import Scorer
from kad.pair.model_files import load_tokenizer, shared_tokenizer, tokenizer_of
from kad.pair.sources import Source
from kad.tokens.vocabulary import OWN


def facts_of(model: PreTrainedModel) -> Facts:
    """The facts of one model."""
    return Facts(
        parameters=int(model.num_parameters()),
        context_length=getattr(model.config.get_text_config(), "max_position_embeddings", None),
        weight_bytes=int(model.get_memory_footprint(return_buffers=False)),
        weights=str(model.dtype).removeprefix("torch."),
    )


class TransformersModel:
    """One model that Transformers runs; see `kad.engines.protocols.Model`.

    Args:
        source: where the model is.
        **options: how to load it, see `kad.pair.sources.MODEL_KWARGS`.

    Raises:
        PairError: the model cannot be found or loaded.
    """

    def __init__(self, source: Source, **options: Any) -> None:
        self.source = source
        self.model = load_model(source, **options)
        self.generation_config: GenerationConfig = self.model.generation_config
        self.vocab_size = int(self.model.config.get_text_config().vocab_size)

    @cached_property
    def tokenizer(self) -> Any:
        """See `kad.engines.protocols.Model`."""
        return load_tokenizer(self.source)

    @cached_property
    def facts(self) -> Facts:
        """See `kad.engines.protocols.Model`."""
        return facts_of(self.model)

    def scorer(self, vocab_size: int, device: torch.device, *, rollback: bool = True) -> Scorer:
        """See `kad.engines.protocols.Model`."""
        cache = DynamicCache(config=self.model.config)
        return CachedModel(self.model, cache, vocab_size, device, rollback=rollback)


class TransformersEngine:
    """Tokenizer, facts and scorers of a pair that Transformers has loaded."""

    config: Any  # a KadConfig
    parts: Any  # the models by role
    base: PreTrainedModel

    @cached_property
    def tokenizer(self) -> Any:
        """The pair's tokenizer, else the aligned model's. Assign one if the models were given as objects.

        Raises:
            PairError: neither has a tokenizer.
        """
        return tokenizer_of(self.config)

    @cached_property
    def base_tokenizer(self) -> Any:
        """See `kad.engines.protocols.ComposedModel`. Assign it if the models were given as objects."""
        return shared_tokenizer(self.config.model_sources()["base"]) if self.config.base_tokenizer == OWN else None

    @cached_property
    def facts(self) -> dict[str, Facts]:
        """See `kad.engines.protocols.ComposedModel`."""
        return {role: facts_of(part) for role, part in self.parts.items()}

    @cached_property
    def captures(self) -> Captures:
        """The captured forwards that wait for the next generation."""
        return Captures()

    def captured_scorers(
        self, roles: Collection[str], drafter: str, windows: Sequence[int], capacity: int, backend: Backend
    ) -> dict[str, Scorer]:
        """See `kad.engines.protocols.Capturing`.

        The drafting model reads one token at a time, and two after a window of accepted drafts. The other models read
        the drafts of a window and the token before them.
        """
        shapes = {role: (1, 2) if role == drafter else tuple(size + 1 for size in windows) for role in roles}
        return {
            role: CapturedModel(
                self.captures, self.parts[role], capacity, shapes[role], backend, self.config.vocab_size,
                self.base.device,
            )
            for role in roles
        }  # fmt: skip

    def scorers(self, roles: Collection[str], *, rollback: bool = True) -> dict[str, Scorer]:
        """See `kad.engines.protocols.ComposedModel`."""
        return {role: self.scorer_of(self.parts[role], rollback=rollback) for role in roles}

    def scorer_of(self, model: PreTrainedModel, *, rollback: bool = True) -> Scorer:
        """A scorer for any model with the pair's vocabulary, or for a base model with its own."""
        cache = DynamicCache(config=model.config)
        own = self.base_tokenizer is not None and model is self.base
        size = int(model.config.get_text_config().vocab_size if own else self.config.vocab_size)
        return CachedModel(model, cache, size, self.base.device, rollback=rollback)

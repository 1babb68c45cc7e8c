"""The Transformers engine: the part of `KadForCausalLM` that implements `kad.engines.base`."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from typing import Any

from transformers import DynamicCache, PreTrainedModel

from kad.engines.base import Facts, Scorer
from kad.engines.cached_model import CachedModel
from kad.loading import tokenizer_of


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
    def facts(self) -> dict[str, Facts]:
        """See `kad.engines.base.ComposedModel`."""
        return {
            role: Facts(
                parameters=int(part.num_parameters()),
                context_length=getattr(part.config.get_text_config(), "max_position_embeddings", None),
            )
            for role, part in self.parts.items()
        }

    def scorers(self, roles: Collection[str], *, rollback: bool = True) -> dict[str, Scorer]:
        """See `kad.engines.base.ComposedModel`."""
        return {role: self.scorer_of(self.parts[role], rollback=rollback) for role in roles}

    def scorer_of(self, model: PreTrainedModel, *, rollback: bool = True) -> Scorer:
        """A scorer for any model with the pair's vocabulary."""
        cache = DynamicCache(config=model.config)
        return CachedModel(model, cache, int(self.config.vocab_size), self.base.device, rollback=rollback)

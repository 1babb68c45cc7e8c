"""A pair whose models are run by any engines: each role has a model of its own engine."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from kad.engines.protocols import Facts, Model
from kad.errors import PairError
from kad.method.composition import Composition
from kad.method.scorer import Scorer
from kad.pair.config import KadConfig
from kad.pair.folder import generation_config, write
from kad.pair.in_force import InForce
from kad.pair.model_files import tokenizer_of
from kad.tokens.agreement import agree
from kad.tokens.vocabulary import OWN, Common

if TYPE_CHECKING:
    from kad.method.rules import Rule


class Pair(InForce):
    """A base model and a small aligned one, run by engines. It implements `kad.engines.protocols.ComposedModel`.

    Args:
        config: the pair. Its `vocab_size` and `foreign_ids` are set here.
        models: the models by role.

    Attributes:
        parts: the models by role.
        device: the CPU, where the models' logits are composed.
        rule: the rule in force.

    Raises:
        VocabularyError: the models' tokens differ.
        RuleError: the rule needs the reference model, and there is none.
    """

    device = torch.device("cpu")

    def __init__(self, config: KadConfig, models: Mapping[str, Model]) -> None:
        self.config, self.parts = config, dict(models)
        self.reference = self.parts.get("reference")
        self.config.set_vocabulary(vocabulary_of(self.parts))
        self.own_composition = Composition.of(config.rule, config.deferral_temperature)
        self.generation_config = generation_config(config, self.parts["aligned"].generation_config)

    @cached_property
    def tokenizer(self) -> Any:
        """The aligned model's tokenizer. A pair's folder may have one of its own for models of Transformers."""
        aligned = self.parts["aligned"]
        return tokenizer_of(self.config) if aligned.facts.engine == "transformers" else aligned.tokenizer

    @property
    def base_tokenizer(self) -> Any:
        """The base model's tokenizer, where it is another one. Else None."""
        return self.parts["base"].tokenizer if self.config.base_tokenizer == OWN else None

    @property
    def facts(self) -> dict[str, Facts]:
        """See `kad.engines.protocols.ComposedModel`."""
        return {role: model.facts for role, model in self.parts.items()}

    def scorers(self, roles: Collection[str], *, rollback: bool = True) -> dict[str, Scorer]:
        """See `kad.engines.protocols.ComposedModel`."""
        return {role: self.scorer_of(self.parts[role], rollback=rollback) for role in roles}

    def scorer_of(self, model: Model, *, rollback: bool = True) -> Scorer:
        """A scorer for any model with the pair's vocabulary, or for a base model with its own."""
        own = model is self.parts["base"] and self.config.base_tokenizer == OWN
        size = model.vocab_size if own else int(self.config.vocab_size or 0)
        return model.scorer(size, self.device, rollback=rollback)

    def save_pretrained(self, folder: Any) -> None:
        """Write the pair's folder; see `kad.pair.folder.write`."""
        write(folder, self.config, self.tokenizer, self.generation_config)


def compose_models(
    config: KadConfig,
    models: Mapping[str, Model],
    rule: str | Mapping[str, Any] | Rule | None = None,
    deferral_temperature: float | None = None,
) -> Pair:
    """A pair of loaded models, with the rule and the deferral temperature replaced where they are given."""
    chosen = Composition.of(config.rule if rule is None else rule, deferral_temperature or config.deferral_temperature)
    config.rule, config.deferral_temperature = str(chosen.rule), chosen.deferral_temperature
    return Pair(config, models)


def vocabulary_of(models: Mapping[str, Model]) -> Common:
    """The vocabulary that all models share, after checking that their tokenizers agree."""
    tokenizers: dict[str, Any] = {}
    for role, model in models.items():
        with suppress(PairError):  # bare weights: nothing to compare
            tokenizers[role] = model.tokenizer
    return agree({role: model.vocab_size for role, model in models.items()}, tokenizers)

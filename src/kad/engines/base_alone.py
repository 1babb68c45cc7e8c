"""A pair's base model alone, in its own tokens, where the aligned model has others."""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from kad.engines.protocols import Facts
from kad.method.composition import Composition
from kad.method.scorer import Scorer

if TYPE_CHECKING:
    from kad.method.composition import RuleLike

_RULE = "base_only"


class BaseAlone:
    """The base model as a `kad.engines.protocols.ComposedModel`: pi is p, whatever rule is asked for.

    In the place of the aligned model stands one that finds all tokens equally probable. The rule `base_only` never
    draws from it.

    Args:
        model: a pair whose models have tokenizers of their own, a `KadForCausalLM` or a `kad.engines.pair.Pair`.

    Attributes:
        config: how many tokens it has.
        generation_config: the pair's sampling settings, and the tokens that end a text of the base model.
    """

    base_prompt = base_tokenizer = None

    def __init__(self, model: Any) -> None:
        self._model = model
        self.tokenizer, self.device = model.base_tokenizer, model.device
        base = model.parts["base"]
        transformers = isinstance(base, PreTrainedModel)
        self._rows = int(base.config.get_text_config().vocab_size if transformers else base.vocab_size)
        self.config = SimpleNamespace(vocab_size=self._rows)
        self.generation_config = GenerationConfig.from_dict(model.generation_config.to_dict())
        ends = base.generation_config.eos_token_id
        self.generation_config.eos_token_id = self.tokenizer.eos_token_id if ends is None else ends
        self.generation_config.pad_token_id = self.tokenizer.pad_token_id

    @property
    def facts(self) -> dict[str, Facts]:
        """See `kad.engines.protocols.ComposedModel`."""
        return {"base": self._model.facts["base"]}

    @property
    def composition(self) -> Composition:
        """See `kad.engines.protocols.ComposedModel`."""
        return self.composed_by()

    def composed_by(self, rule: RuleLike | None = None, deferral_temperature: float | None = None) -> Composition:
        """The rule `base_only` at this deferral temperature (None: the pair's)."""
        return Composition.of(_RULE, deferral_temperature or self._model.composition.deferral_temperature)

    def scorers(self, roles: Collection[str], *, rollback: bool = True) -> dict[str, Scorer]:
        """See `kad.engines.protocols.ComposedModel`."""
        base: Scorer = self._model.scorers(["base"], rollback=rollback)["base"]
        return {role: base if role == "base" else _Uniform(self._rows, self.device) for role in roles}


class _Uniform:
    """A scorer that finds all tokens equally probable.

    Args:
        rows: the number of tokens.
        device: where the logits are.
    """

    reversible = True

    def __init__(self, rows: int, device: torch.device) -> None:
        self._logits, self.processed = torch.zeros(rows, device=device), 0

    def advance(self, ids: Tensor, keep: int) -> Tensor:
        """See `kad.method.scorer.Scorer`."""
        self.processed += len(ids)
        return self._logits.expand(keep, -1)

    def rollback(self, length: int) -> None:
        """See `kad.method.scorer.Scorer`."""
        self.processed = min(self.processed, length)

    def release(self) -> None:
        """See `kad.method.scorer.Scorer`."""

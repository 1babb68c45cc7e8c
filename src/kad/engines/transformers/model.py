"""The engine of Transformers: one model, its facts and scorers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, DynamicLayer, GenerationConfig, PreTrainedModel

from kad.engines.protocols import Batch, Facts
from kad.engines.transformers.captured import Backend, CapturedModel, Captures
from kad.engines.transformers.host import (
    cache_option,
    forget,
    goes_back,
    kinds_of_layers,
    parameters_of,
    record_past,
    restore,
    save,
)
from kad.errors import MissingTokenizerError, UsageError
from kad.method.replay import Replay
from kad.method.scorer import Scorer
from kad.pair.model_files import load_tokenizer
from kad.pair.sources import Source
from kad.tokens.vocabulary import trim


def run_part(
    model: PreTrainedModel,
    input_ids: Tensor,
    cache: Any = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    logits_to_keep: int | Tensor = 0,
    **others: Tensor,
) -> Tensor:
    """The logits of one model (batch, kept positions, vocab) on its own device. Fills `cache` if there is one.

    `others` are further tensors that its `forward` takes.
    """
    device = model.device
    parameters = parameters_of(type(model).forward)
    options: dict[str, Any] = {"use_cache": cache is not None, "return_dict": True, **others}
    if cache is not None:
        options[cache_option(model)] = cache
    if attention_mask is not None:
        options["attention_mask"] = attention_mask.to(device)
    if position_ids is not None and "position_ids" in parameters:
        options["position_ids"] = position_ids.to(device)
    if "logits_to_keep" in parameters:
        options["logits_to_keep"] = logits_to_keep
    logits: Tensor = model(input_ids.to(device), **options).logits
    if "logits_to_keep" in parameters:
        return logits
    if isinstance(logits_to_keep, Tensor):
        return logits[:, logits_to_keep.to(device)]
    return logits[:, -logits_to_keep:] if logits_to_keep else logits


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
        return self.model.generation_config

    @property
    def device(self) -> torch.device:
        return cast("torch.device", self.model.device)

    @cached_property
    def tokenizer(self) -> Any:
        if self.source is None:
            raise MissingTokenizerError(
                f"The {type(self.model).__name__} was given as an object without a path, so its tokenizer is not "
                "known. Assign it: pair.tokenizer = ..."
            )
        return load_tokenizer(self.source)

    @cached_property
    def facts(self) -> Facts:
        return Facts(
            parameters=int(self.model.num_parameters()),
            context_length=getattr(self.model.config.get_text_config(), "max_position_embeddings", None),
            weight_bytes=int(self.model.get_memory_footprint(return_buffers=False)),
            weights=str(self.model.dtype).removeprefix("torch."),
        )

    def scorer(self, vocab_size: int, device: torch.device) -> Scorer:
        return scorer_of(self.model, DynamicCache(config=self.model.config), vocab_size, device)

    def captured(
        self, vocab_size: int, device: torch.device, capacity: int, shapes: Sequence[int], backend: Backend
    ) -> Scorer:
        capture = self.captures.take(self.model, capacity + max(shapes), shapes, backend)
        return CapturedModel(capture, vocab_size, device)

    def in_step(self, prompts: list[list[int]], vocab_size: int, pad: int) -> Batch:
        return Lockstep(self.model, prompts, vocab_size, pad)


def scorer_of(model: PreTrainedModel, cache: Cache, vocab_size: int, device: torch.device) -> Scorer:
    """A model with its cache as a scorer. Arguments as for `CachedModel`.

    Raises:
        UsageError: a quantized cache.
    """
    if quantized := sorted(kind for kind in kinds_of_layers(cache) if "Quantized" in kind):
        raise UsageError(
            f"What a {quantized[0]} holds depends on how many tokens were read at once, so drafts would change the "
            "text. Use another cache (leave cache_implementation out), or decode without speculation."
        )
    scorer = CachedModel(model, cache, vocab_size, device)
    return scorer if goes_back(cache) else Replay(scorer)


class CachedModel:
    """A Transformers model with its key-value cache. Where the cache cannot go back, it saves and restores.

    Args:
        model: the model.
        cache: its cache. It may already hold a prefix.
        vocab_size: the size of the common vocabulary. Later rows are cut off.
        device: the device of the logits.
    """

    def __init__(self, model: PreTrainedModel, cache: Cache, vocab_size: int, device: torch.device) -> None:
        self.processed = int(cache.get_seq_length())
        self._model, self._cache, self._vocab, self._device = model, cache, vocab_size, device
        self._recording = goes_back(cache) and record_past(cache, True)

    @property
    def reversible(self) -> bool:
        return all(type(layer) is DynamicLayer for layer in self._cache.layers)

    def advance(self, ids: Tensor, keep: int) -> Tensor:
        logits = run_part(self._model, ids.unsqueeze(0), self._cache, logits_to_keep=keep)
        self.processed += ids.shape[0]
        return trim(logits[0, -keep:], self._vocab).to(self._device)

    def rollback(self, length: int) -> None:
        surplus = max(self.processed - length, 0)
        if surplus == 0 and (not self._recording or self.processed == 0):
            return
        forget(self._cache, surplus)
        self.processed -= surplus

    def save(self) -> tuple[int, Any]:
        """See `kad.method.replay`."""
        return self.processed, save(self._cache)

    def restore(self, saved: tuple[int, Any]) -> None:
        """See `kad.method.replay`."""
        length, layers = saved
        restore(self._cache, layers, self.processed - length)
        self.processed = length

    def release(self) -> None:
        """Put the cache back into its ordinary state."""
        if self._recording:
            record_past(self._cache, False)


class Lockstep:
    """Many prompts through one model, filled with `pad` on the left; see `kad.engines.protocols.Batch`."""

    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], vocab_size: int, pad: int) -> None:
        width = max(map(len, prompts))
        filled = [[pad] * (width - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        self._model, self._vocab = model, vocab_size
        self.room = sys.maxsize  # which Transformers does not limit
        self.ids, self._mask = torch.tensor(filled, device=model.device), torch.tensor(mask, device=model.device)
        self._cache = DynamicCache(config=model.config)

    def advance(self, tokens: Tensor | None = None) -> Tensor:
        ids = self.ids if tokens is None else tokens.to(self.ids.device).unsqueeze(-1)
        if tokens is not None:
            self._mask = torch.cat((self._mask, self._mask.new_ones(ids.shape)), dim=-1)
        positions = (self._mask.cumsum(dim=-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        logits = run_part(self._model, ids, self._cache, self._mask, positions, logits_to_keep=1)
        return trim(logits[:, -1], self._vocab)

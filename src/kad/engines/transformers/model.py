"""The engine of Transformers: one model, its facts and scorers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, DynamicLayer, GenerationConfig, PreTrainedModel

from kad.engines.protocols import Batch, Facts
from kad.engines.transformers.captured import Backend, CapturedModel, Captures
from kad.engines.transformers.forward import Trial, check_kind, run_part
from kad.engines.transformers.host import (
    forget,
    goes_back,
    kinds_of_layers,
    length_of,
    record_past,
    restore,
    save,
)
from kad.errors import MissingTokenizerError, UsageError
from kad.method.replay import Replay
from kad.method.scorer import Scorer
from kad.pair.model_files import load_tokenizer, rope_turns, soft_cap_of
from kad.pair.sources import Source
from kad.tokens.vocabulary import trim


class TransformersModel:
    """One model that Transformers runs; see `kad.engines.protocols.Model`.

    Args:
        model: the loaded model.
        source: where it came from. None for an object without a path.

    Attributes:
        captures: the captured forwards that wait for the next generation.

    Raises:
        PairError: it is no causal language model with a cache.
    """

    def __init__(self, model: PreTrainedModel, source: Source | None = None) -> None:
        check_kind(model)
        self.model, self.source = model.eval(), source
        self.vocab_size = int(model.config.get_text_config().vocab_size)
        self.captures = Captures()

    def check(self) -> None:
        """Try the model, before it answers for the first time.

        Raises:
            UsageError: read in parts, it says something else than in one pass; see `Trial`.
        """
        Trial.of(self.model).check()

    @property
    def generation_config(self) -> GenerationConfig:
        return self.model.generation_config

    @property
    def device(self) -> torch.device:
        return cast("torch.device", self.model.device)

    @cached_property
    def tokenizer(self) -> Any:
        name = getattr(self.model, "name_or_path", "")
        if self.source is None and not name:
            raise MissingTokenizerError(
                f"The {type(self.model).__name__} was given as an object without a path, so its tokenizer is not "
                "known. Give it: kad.load(..., tokenizer=...), or pair.tokenizer = ..."
            )
        # One with an adapter at work has no source, and the tokenizer of the model underneath.
        return load_tokenizer(self.source or Source.parse(name))

    @cached_property
    def facts(self) -> Facts:
        return Facts(
            parameters=int(self.model.num_parameters()),
            context_length=getattr(self.model.config.get_text_config(), "max_position_embeddings", None),
            weight_bytes=int(self.model.get_memory_footprint(return_buffers=False)),
            weights=str(self.model.dtype).removeprefix("torch."),
            soft_cap=soft_cap_of(self.model.config.get_text_config().to_dict()),
        )

    def scorer(self, vocab_size: int, device: torch.device) -> Scorer:
        def make() -> Scorer:
            return scorer_of(self.model, new_cache(self.model), vocab_size, device)

        turn = rope_turns(self.model.config, "longrope")
        return make() if turn is None else Turning(make, turn)

    def captured(
        self, vocab_size: int, device: torch.device, capacity: int, shapes: Sequence[int], backend: Backend
    ) -> Scorer:
        turn = rope_turns(self.model.config, "longrope")
        if turn is not None and turn < capacity:
            raise UsageError(
                f"{type(self.model).__name__} changes its rotary frequencies at {turn} tokens, and this text may "
                f"become {capacity} long. Decode without compile."
            )
        capture = self.captures.take(self.model, capacity + max(shapes), shapes, backend)
        return CapturedModel(capture, vocab_size, device)

    def in_step(self, prompts: list[list[int]], vocab_size: int, pad: int) -> Batch | None:
        same = len({len(prompt) for prompt in prompts}) == 1
        if rope_turns(self.model.config, "longrope") or not (same or Trial.of(self.model).padding):
            return None
        return Lockstep(self.model, prompts, vocab_size, pad)


def new_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty dynamic cache.

    Raises:
        UsageError: read in parts, the model says something else than in one pass.
    """
    Trial.of(model).check()
    return DynamicCache(config=model.config)


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
        length = length_of(cache)
        if length is None:
            raise UsageError(
                "The cache has recurrent layers alone, which do not say how much they read. Give an empty one, or none."
            )
        self.processed = length
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


class Turning:
    """Scorer of a model whose rotary frequencies change at a length: it reads the text anew there.

    Args:
        make: makes a scorer of the model, with an empty cache.
        turn: texts up to this length have the first frequencies, longer ones the others.
    """

    def __init__(self, make: Callable[[], Scorer], turn: int) -> None:
        self._make, self._turn = make, turn
        self._scorer, self._ids = make(), torch.empty(0, dtype=torch.long)
        self._above: bool | None = False  # the frequencies with which the scorer has read. None: another text's

    @property
    def processed(self) -> int:
        return len(self._ids)

    @property
    def reversible(self) -> bool:
        return self._scorer.reversible

    def advance(self, ids: Tensor, keep: int) -> Tensor:
        self._ids = torch.cat((self._ids.to(ids.device), ids))
        end = len(self._ids)
        above = min(keep, max(end - self._turn, 0))
        rows = [self._read(self._ids[: end - above], keep - above, above=False)] if above < keep else []
        return torch.cat([*rows, self._read(self._ids, above, above=True)] if above else rows)

    def rollback(self, length: int) -> None:
        if (length > self._turn) == self._above:
            self._scorer.rollback(length)
        elif length < self.processed:
            self._above = None
        self._ids = self._ids[:length]

    def release(self) -> None:
        self._scorer.release()

    def _read(self, text: Tensor, keep: int, *, above: bool) -> Tensor:
        if above != self._above or self._scorer.processed > len(text) - keep:
            self._scorer.release()
            self._scorer, self._above = self._make(), above
        return cast("Tensor", self._scorer.advance(text[self._scorer.processed :], keep))


class Lockstep:
    """Many prompts through one model, filled with `pad` on the left; see `kad.engines.protocols.Batch`."""

    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], vocab_size: int, pad: int) -> None:
        width = max(map(len, prompts))
        filled = [[pad] * (width - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        self._model, self._vocab = model, vocab_size
        self.ids, self._mask = torch.tensor(filled, device=model.device), torch.tensor(mask, device=model.device)
        self._cache = new_cache(model)
        self._last = getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize

    def advance(self, tokens: Tensor | None = None) -> Tensor:
        ids = self.ids if tokens is None else tokens.to(self.ids.device).unsqueeze(-1)
        if tokens is not None:
            self._mask = torch.cat((self._mask, self._mask.new_ones(ids.shape)), dim=-1)
        # Rows that have ended go on beside the others, perhaps past the last position.
        positions = (self._mask.cumsum(dim=-1) - 1).clamp(min=0, max=self._last - 1)[:, -ids.shape[1] :]
        logits = run_part(self._model, ids, self._cache, self._mask, positions, logits_to_keep=1)
        return trim(logits[:, -1], self._vocab)

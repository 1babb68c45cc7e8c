"""A pair in the place of a model: its scorer moves the scorers of its parts, and composes their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from kad.engines.pair import Pair
from kad.engines.protocols import Batch, Facts, Model
from kad.errors import UsageError
from kad.method.composition import Composition, compose, in_order
from kad.method.distribution import EXCLUDED, Rows
from kad.method.scorer import Scorer
from kad.pair.parts import Part
from kad.pair.sources import Source
from kad.tokens.never_kept import NeverKept
from kad.tokens.vocabulary import trim


def assembled(parts: Mapping[str, Part], leaves: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """The models of a pair by role: the leaves, and the pairs that are made of them.

    Args:
        parts: what stands in each role.
        leaves: the loaded models by their paths, see `kad.pair.parts.leaves_of`.
        before: the path to these parts, and a point.
    """
    models: dict[str, Any] = {}
    for role, part in parts.items():
        path = f"{before}{role}"
        if part.config is None:
            models[role] = leaves[path]
            continue
        inner = assembled(part.parts, leaves, f"{path}.")
        if any(model.facts.engine != "transformers" for model in inner.values()):
            part.config.vocab_size = None  # as these engines count rows
        models[role] = PairAsModel(Pair(part.config, inner), part.source)
    return models


class PairAsModel:
    """A pair as a model whose distribution is pi; see `kad.engines.protocols.Model`.

    Its rule and its deferral temperature are its own.

    Args:
        pair: the pair, of any engines.
        source: where it came from. None: where its configuration says.
    """

    def __init__(self, pair: Pair, source: Source | None = None) -> None:
        self.pair = pair
        self.source = pair.config.own_source if source is None else source

    @property
    def leaves(self) -> list[Model]:
        """The models in it, each once."""
        found: dict[int, Model] = {}
        for model in self.pair.models.values():
            found |= {id(leaf): leaf for leaf in (model.leaves if isinstance(model, PairAsModel) else [model])}
        return list(found.values())

    @cached_property
    def facts(self) -> Facts:
        """The sums over its models. What two roles share counts once."""
        leaves = [leaf.facts for leaf in self.leaves]
        return Facts(
            parameters=_total([facts.parameters for facts in leaves]),
            context_length=self.pair.context_length,
            engine=", ".join(dict.fromkeys(facts.engine for facts in leaves)),
            weight_bytes=_total([facts.weight_bytes for facts in leaves]),
            weights=", ".join(dict.fromkeys(facts.weights for facts in leaves)),
            grows=any(facts.grows for facts in leaves),
            tokenizer_in_file=self.pair.facts["aligned"].tokenizer_in_file,
        )

    @property
    def vocab_size(self) -> int:
        return int(self.pair.config.vocab_size or 0)

    @property
    def tokenizer(self) -> Any:
        return self.pair.tokenizer

    @property
    def generation_config(self) -> GenerationConfig:
        return self.pair.generation_config

    @property
    def device(self) -> torch.device:
        return self.pair.device

    @property
    def roles(self) -> tuple[str, ...]:
        """The parts that must run."""
        return self.pair.roles_of(self.pair.composition)

    def scorer(self, vocab_size: int, device: torch.device) -> Scorer:
        if self.pair.base_tokenizer is not None:
            raise UsageError(
                "The base model of a pair in this pair has a tokenizer of its own, and is asked by a text. Use "
                "kad.generate, kad.stream, kad.score or kad.Conversation, or a pair with one tokenizer."
            )
        return self.composed(self.pair.scorers(self.roles), vocab_size, device)

    def composed(
        self, parts: Mapping[str, Scorer], vocab_size: int, device: torch.device, *, own_prompts: bool = False
    ) -> ComposedScorer:
        """The scorer of the pair, made of those of its parts; see `ComposedScorer`."""
        return ComposedScorer(self.pair, parts, vocab_size, device, own_prompts)

    def captured(
        self, vocab_size: int, device: torch.device, capacity: int, shapes: Sequence[int], backend: Any
    ) -> Scorer:
        pair, parts = self.pair, {}
        for role in self.roles:
            model = pair.models[role]
            parts[role] = model.captured(pair.rows_of(model), pair.device, capacity, shapes, backend)
        return self.composed(parts, vocab_size, device)

    def in_step(self, prompts: list[list[int]], vocab_size: int, pad: int) -> Batch | None:
        batches = {role: self.pair.models[role].in_step(prompts, self.vocab_size, pad) for role in self.roles}
        parts = {role: batch for role, batch in batches.items() if batch is not None}
        return ComposedBatch(self.pair, parts, vocab_size) if len(parts) == len(batches) else None


def _total(sizes: Sequence[int | None]) -> int | None:
    """None if one of them is not known."""
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


class ComposedScorer:
    """Scorer of a pair. The composition is the one in force when it is made.

    Args:
        pair: the pair.
        parts: the scorers of its parts, by role, which all count in the tokens of the pair.
        vocab_size: see `Model.scorer`.
        device: see `Model.scorer`.
        own_prompts: whether a part reads a prompt of its own. The scorer then ends with its answer.
    """

    def __init__(
        self,
        pair: Pair,
        parts: Mapping[str, Scorer],
        vocab_size: int,
        device: torch.device,
        own_prompts: bool = False,
    ) -> None:
        self.parts, self._compose, self._own_prompts = dict(parts), _Composer(pair), own_prompts
        self._vocab, self._device = vocab_size, device

    @property
    def processed(self) -> int:
        """What all parts have read. One that drops more than asked reads on alone."""
        return min(part.processed for part in self.parts.values())

    @property
    def reversible(self) -> bool:
        return not self._own_prompts and all(part.reversible for part in self.parts.values())

    def advance(self, ids: Tensor, keep: int) -> Tensor:
        start = self.processed
        rows = {role: part.advance(ids[part.processed - start :], keep) for role, part in self.parts.items()}
        return trim(self._compose(rows), self._vocab).to(self._device)

    def rollback(self, length: int) -> None:
        for part in self.parts.values():
            part.rollback(length)

    def release(self) -> None:
        for part in self.parts.values():
            part.release()


class ComposedBatch:
    """A pair at work on many prompts; see `kad.engines.protocols.Batch`."""

    def __init__(self, pair: Pair, parts: Mapping[str, Batch], vocab_size: int) -> None:
        self.ids, self._parts = parts["aligned"].ids, dict(parts)
        self._compose, self._vocab, self._device = _Composer(pair), vocab_size, pair.device

    def advance(self, tokens: Tensor | None = None) -> Tensor:
        rows: dict[str, Rows] = {role: part.advance(tokens).to(self._device) for role, part in self._parts.items()}
        return trim(self._compose(rows), self._vocab)


class _Composer:
    """Composes the rows of a pair's parts, (n, vocab), as the rows of a model."""

    def __init__(self, pair: Pair) -> None:
        self._composition: Composition = pair.composition
        foreign = tuple(pair.config.foreign_ids or ())
        self._never_kept = NeverKept(foreign) if foreign else None

    def __call__(self, rows: Mapping[str, Rows]) -> Tensor:
        rows = dict(rows)
        if self._never_kept is not None:
            rows["base"] = self._never_kept.move(rows["base"], (), self._composition.deferral_temperature)
        return without_excluded(compose(self._composition, *in_order(rows)))


def without_excluded(log_pi: Tensor) -> Tensor:
    """log pi (..., vocab) as the logits of a model: a token that pi excludes stands at -inf.

    It stands 10,000 below the others in log pi, which is no probability of zero any more where the pair above divides
    by it, or by a high temperature.
    """
    return log_pi.masked_fill(log_pi < EXCLUDED / 2, -torch.inf)

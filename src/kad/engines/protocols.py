"""What an engine provides: a `Model` that gives scorers, or a `WholeModel` that runs whole generations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from kad.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig

    from kad.method.composition import Composition
    from kad.method.scorer import Scorer


@dataclass(frozen=True)
class Facts:
    """What an engine knows about one model."""

    parameters: int | None  # None: the server that runs it does not say
    context_length: int | None  # the number of positions it supports. None if it does not say
    engine: str = "transformers"
    weight_bytes: int | None = None  # the memory of its weights. None if it is not known
    weights: str = ""  # how its weights are stored, in words: "float32", "Q4_K - Medium", "4 bits"
    grows: bool = False  # whether the engine's option `context` can raise `context_length`
    soft_cap: float | None = None  # the bound that it puts on its logits. None if there is none
    # Whether the weights' file carries the tokenizer. It is then used, and not a pair's own.
    tokenizer_in_file: bool = False
    # Whether its rows are lists of the most probable tokens, see `kad.method.distribution.ListedRows`.
    gives_lists: bool = False


class Batch(Protocol):
    """One model at work on many prompts in step: each call reads one more token of each row.

    Attributes:
        ids: (batch, positions), the prompts, with padding on the left.
    """

    ids: Tensor

    def advance(self, tokens: Tensor | None = None) -> Tensor:
        """Read the prompts, or one token (batch,) of each row after them. Returns the logits (batch, vocab) there."""


class Model(Protocol):
    """One model, loaded by an engine. `kad.engines.pair` composes models of any engines."""

    @property
    def facts(self) -> Facts:
        """What is known about it."""

    @property
    def vocab_size(self) -> int:
        """The number of its output rows."""

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer, with its chat template. It works as a tokenizer of Transformers.

        Raises:
            PairError: it has none.
        """

    @property
    def generation_config(self) -> GenerationConfig:
        """Its sampling settings, and the tokens that end a text."""

    @property
    def device(self) -> torch.device:
        """Where its logits are made."""

    def scorer(self, vocab_size: int, device: torch.device) -> Scorer:
        """A new scorer, whose logits have `vocab_size` entries and are on `device`."""

    def captured(
        self, vocab_size: int, device: torch.device, capacity: int, shapes: Sequence[int], backend: Any
    ) -> Scorer:
        """A new scorer whose forward passes are captured; see `Pair.captured_scorers`.

        Raises:
            UsageError: the engine cannot do that.
        """

    def in_step(self, prompts: list[list[int]], vocab_size: int, pad: int) -> Batch | None:
        """The model at work on many prompts at once. None: this engine takes one at a time."""


@dataclass(frozen=True)
class Ask:
    """One answer that is asked of an engine that runs whole generations."""

    prompt_ids: Sequence[int]  # the prompt's tokens
    config: GenerationConfig  # how to draw tokens, and how many
    ends: Sequence[int] = ()  # the tokens that end the answer
    seed: int | None = None  # of the random numbers. None if nothing is drawn
    composition: Composition | None = None  # how to compose. None if the engine runs one model alone


@dataclass(frozen=True)
class Emission:
    """Some new tokens of one answer."""

    index: int  # which answer, by its place among those asked for
    token_ids: list[int]
    # Why it ends here: "stop", "stop_string", "length" or "interrupted". None: it goes on.
    finish_reason: str | None = None


@dataclass(frozen=True)
class DraftCounts:
    """What speculation did in an engine since it was made."""

    drafted: int = 0
    lengths: Mapping[int, int] = field(default_factory=dict)  # how many windows accepted 0, 1, 2, ... drafts


class WholeModel(Protocol):
    """A model whose engine runs whole generations itself, as vLLM does. It gives no scorers.

    Attributes:
        followed: the names of the generation settings that it follows.
    """

    followed: frozenset[str]

    @property
    def draft_tokens(self) -> int:
        """How many tokens the engine drafts at a time."""

    @property
    def context_length(self) -> int | None:
        """The number of positions that the engine was asked to have. None leaves it to the engine."""

    def batch(self, asks: Sequence[Ask], draft_tokens: int = 0, drafter: str = "aligned") -> Iterator[Emission]:
        """Generate answers, all at once. Tokens come as soon as they are there; to close the iterator ends the rest.

        Raises:
            UsageError: a request that the engine refuses.
            LogitsError: a row that is no distribution.
        """

    def draft_counts(self) -> DraftCounts:
        """What speculation did since the model was made."""

    def close(self) -> None:
        """Stop the engine and free its memory. The next answer starts it again."""


class OneAtATime:
    """The part of `Model` that is the same for engines on the CPU which take one prompt at a time."""

    device = torch.device("cpu")

    def captured(self, *args: Any, **kwargs: Any) -> Scorer:
        raise OptionError("Only models that Transformers runs can be compiled. Leave `compile` out.")

    def in_step(self, *args: Any, **kwargs: Any) -> None:
        """Prompts are answered one after the other."""

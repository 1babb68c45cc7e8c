"""What an engine provides: for each model of a pair, a scorer that advances and rolls back; or whole generations."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from kad.errors import UsageError
from kad.method.scorer import Scorer

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig

    from kad.method.composition import Composition
    from kad.pair.base_prompt import BasePrompt


@dataclass(frozen=True)
class Facts:
    """What an engine knows about one model.

    Attributes:
        parameters: the number of its weights.
        context_length: the number of positions it supports. None if it does not say.
        engine: the engine that runs it.
        weight_bytes: the memory of its weights. None if it is not known.
        weights: how its weights are stored, in words: "float32", "Q4_K - Medium", "4 bits".
        grows: whether the engine's option `context` can raise `context_length`.
    """

    parameters: int
    context_length: int | None
    engine: str = "transformers"
    weight_bytes: int | None = None
    weights: str = ""
    grows: bool = False


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

    def scorer(self, vocab_size: int, device: torch.device, *, rollback: bool = True) -> Scorer:
        """A new scorer, whose logits have `vocab_size` entries and are on `device`.

        Raises:
            UsageError: `rollback`, and the model cannot take rejected drafts back.
        """


@runtime_checkable
class ComposedModel(Protocol):
    """A loaded pair: a `kad.KadForCausalLM` if Transformers runs all models, else a `kad.engines.pair.Pair`.

    Attributes:
        generation_config: the aligned model's sampling settings, and the tokens that end a text.
    """

    generation_config: GenerationConfig

    @property
    def composition(self) -> Composition:
        """The rule and the deferral temperature in force."""

    def composed_by(self, rule: Any = None, deferral_temperature: float | None = None) -> Composition:
        """The current composition with these parts replaced. It is checked against the models of the pair."""

    @property
    def base_prompt(self) -> BasePrompt | None:
        """How the base model is asked. None: it reads the aligned model's prompt."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the aligned model, with its chat template."""

    @property
    def base_tokenizer(self) -> Any:
        """The base model's tokenizer, where it is another one. Else None."""

    @property
    def facts(self) -> Mapping[str, Facts]:
        """What is known about each model, by role."""

    @property
    def device(self) -> torch.device:
        """The device of the logits."""

    def scorers(self, roles: Collection[str], *, rollback: bool = True) -> dict[str, Scorer]:
        """New scorers, by role. With `rollback` False, models that cannot roll back are allowed (recurrent states).

        Raises:
            UsageError: `rollback`, and a model that cannot take rejected drafts back.
        """


@runtime_checkable
class Capturing(Protocol):
    """A pair whose forward passes can be captured."""

    def captured_scorers(
        self, roles: Collection[str], drafter: str, windows: Sequence[int], capacity: int, backend: bool | str
    ) -> dict[str, Scorer]:
        """New scorers with captured forwards, by role.

        Args:
            roles: the models.
            drafter: the role of the drafting model.
            windows: how many tokens may be drafted.
            capacity: the most tokens of the text.
            backend: True, or the name of a backend of torch.compile.

        Raises:
            UsageError: a model cannot be captured.
        """


@dataclass(frozen=True)
class Ask:
    """One answer that is asked of an engine that runs whole generations.

    Attributes:
        prompt_ids: the prompt's tokens.
        config: how to draw tokens, and how many.
        ends: the tokens that end the answer.
        seed: of the random numbers. None if nothing is drawn.
        composition: how to compose. None if the engine runs one model alone.
    """

    prompt_ids: Sequence[int]
    config: GenerationConfig
    ends: Sequence[int] = ()
    seed: int | None = None
    composition: Composition | None = None


@dataclass(frozen=True)
class Emission:
    """Some new tokens of one answer.

    Attributes:
        index: which answer, by its place among those asked for.
        token_ids: its new tokens.
        finish_reason: why it ends here: "stop", "stop_string", "length" or "interrupted". None: it goes on.
    """

    index: int
    token_ids: list[int]
    finish_reason: str | None = None


@dataclass(frozen=True)
class DraftCounts:
    """What speculation did in an engine since it was made.

    Attributes:
        drafted: drafted tokens.
        lengths: how many windows accepted 0, 1, 2, ... drafts.
    """

    drafted: int = 0
    lengths: Mapping[int, int] = field(default_factory=dict)


@runtime_checkable
class Generates(Protocol):
    """A model or a pair whose engine runs whole generations itself, as vLLM does. It gives no scorers.

    Attributes:
        generation_config: the settings of the answers.
        draft_tokens: how many tokens the engine drafts at a time.
        context_length: the number of positions that all models support. None if none of them says.
    """

    generation_config: GenerationConfig
    draft_tokens: int
    context_length: int | None

    def run(self, asks: Sequence[Ask], draft_tokens: int = 0, drafter: str = "aligned") -> Iterator[Emission]:
        """Generate answers, all at once. Tokens come as soon as they are there; to close the iterator ends the rest.

        Args:
            asks: the answers to generate.
            draft_tokens: how many tokens to draft at a time.
            drafter: the role of the drafting model.

        Raises:
            UsageError: a request that the engine refuses.
            LogitsError: a row that is no distribution.
        """

    def draft_counts(self) -> DraftCounts:
        """What speculation did since the model was made."""


def check_scorers(model: Any, what: str) -> None:
    """Raise UsageError if `what` is asked of a model that gives no scorers."""
    if isinstance(model, Generates):
        raise UsageError(
            f"{what} needs the models' logits, and vLLM runs whole generations. Load the pair with another engine."
        )


def roles_of(composition: Composition, drafter: str = "aligned") -> tuple[str, ...]:
    """The models that must run: base and aligned, and the reference if the rule needs it or if it drafts."""
    needs_reference = composition.rule.needs_reference or drafter == "reference"
    return ("base", "aligned", "reference") if needs_reference else ("base", "aligned")

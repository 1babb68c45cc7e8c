"""What the rooms above ask of an engine: for each model of a pair, a scorer that advances and rolls back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import GenerationConfig

    from kad.composition import Composition


class Scorer(Protocol):
    """One model with its cache: it reads tokens, answers with logits, and forgets."""

    processed: int
    """How many tokens it has read and not forgotten."""

    @property
    def reversible(self) -> bool:
        """Whether it can go back to any earlier length. If not, it can still forget the drafts of one window."""

    def advance(self, ids: Tensor, keep: int) -> Tensor:
        """Process ids (n,) that follow the `processed` ones; logits (keep, vocab) at the last `keep` of them."""

    def rollback(self, length: int) -> None:
        """Forget everything but the first `length` tokens; a `length` not yet reached changes nothing."""

    def release(self) -> None:
        """The generation is over: put the cache back into its ordinary state."""


@dataclass(frozen=True)
class Facts:
    """What an engine knows about one model.

    Attributes:
        parameters: how many weights it has.
        context_length: the most positions it was made for; None where it does not say.
    """

    parameters: int
    context_length: int | None


@runtime_checkable
class ComposedModel(Protocol):
    """A pair loaded by an engine. `kad.KadForCausalLM` is the one of the Transformers engine.

    Attributes:
        generation_config: how the aligned model wants tokens to be drawn, and which tokens end a text.
    """

    generation_config: GenerationConfig

    @property
    def composition(self) -> Composition:
        """The rule and the deferral temperature in force."""

    def composed_by(self, rule: Any = None, deferral_temperature: float | None = None) -> Composition:
        """The composition in force with these replaced, checked against the models that there are."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the aligned model, with its chat template."""

    @property
    def facts(self) -> Mapping[str, Facts]:
        """What is known about each model, by role."""

    @property
    def device(self) -> torch.device:
        """Where logits arrive."""

    def scorers(self, roles: Collection[str], *, rollback: bool = True) -> dict[str, Scorer]:
        """New scorers, by role. `rollback` False takes models that cannot forget a token (recurrent states).

        Raises:
            UsageError: `rollback`, and a model that cannot take rejected drafts back.
        """


def roles_of(composition: Composition, drafter: str = "aligned") -> tuple[str, ...]:
    """The models that must run: base and aligned; the reference where the rule needs it, or where it drafts."""
    needs_reference = composition.rule.needs_reference or drafter == "reference"
    return ("base", "aligned", "reference") if needs_reference else ("base", "aligned")

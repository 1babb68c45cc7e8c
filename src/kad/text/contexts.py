"""What each model reads before an answer, and its scorers made ready for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from kad.base_prompt import BasePrompt
from kad.engines.base import ComposedModel, Scorer
from kad.engines.own_prompt import OwnPrompt
from kad.errors import OptionError
from kad.rules import CascadeRule
from kad.text.prompts import Message, Prompt, encode, encode_plain, messages
from kad.translation.stops import Stops
from kad.translation.token_bytes import TokenBytes

if TYPE_CHECKING:
    from torch import Tensor

    from kad.composition import Composition

AnyBasePrompt = str | Mapping[str, Any] | BasePrompt | Sequence[int]
"""What `base_prompt` may be: see `BasePrompt.parse`, or the base model's own token ids."""


@dataclass(frozen=True)
class Context:
    """What the models read before an answer.

    Attributes:
        ids: the tokens of the aligned (and the reference) model's prompt.
        base_ids: the tokens of the base model's own prompt. None if it reads the same.
        stops: texts that end an answer in the form of the base model's prompt.
    """

    ids: list[int]
    base_ids: list[int] | None = None
    stops: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: Context | Sequence[int]) -> Context:
        """A context, or the one in which all models read these tokens."""
        return given if isinstance(given, Context) else cls(list(given))

    @property
    def longest(self) -> int:
        """The number of tokens of the longer prompt."""
        return max(len(self.ids), len(self.base_ids or ()))

    def composition(self, composition: Composition) -> Composition:
        """The composition of the rows that `scorers` gives: with mass that is never kept, if there are stops."""
        return replace(composition, nobody=bool(self._stops(composition)))

    def scorers(
        self,
        model: ComposedModel,
        composition: Composition,
        roles: Collection[str],
        *,
        rollback: bool = True,
        kept: Mapping[str, Scorer] | None = None,
    ) -> dict[str, Scorer]:
        """Scorers by role, which all count in the tokens of `ids` and the answer.

        Args:
            model: the pair.
            composition: how its rows are composed.
            roles: the models to run.
            rollback: see `ComposedModel.scorers`.
            kept: scorers of the engine that have read a part of their prompts already. New ones by default.
        """
        found = dict(kept or model.scorers(roles, rollback=rollback))
        if self.base_ids is not None:
            never = self.never_kept(model.tokenizer, composition)
            found["base"] = OwnPrompt(
                found["base"], self.base_ids, len(self.ids), never, composition.deferral_temperature
            )
        return found

    def never_kept(self, tokenizer: Any, composition: Composition) -> Callable[[Sequence[int]], Tensor] | None:
        """Given the answer so far, the tokens (vocab,), as bool, that p never keeps. None if it may keep all."""
        stops = self._stops(composition)
        return _stops_of(tokenizer, stops).after if stops else None

    def _stops(self, composition: Composition) -> tuple[bytes, ...]:
        """The stops, where they have a meaning: a product of models defers nothing."""
        return tuple(stop.encode() for stop in self.stops) if isinstance(composition.rule, CascadeRule) else ()


def context_of(
    model: ComposedModel,
    prompt: Prompt,
    *,
    system: str | None = None,
    thinking: bool | None = None,
    raw: bool = False,
    base_prompt: AnyBasePrompt | None = None,
) -> Context:
    """What the models read before the answer to a prompt.

    Args:
        model: the pair.
        prompt: what the user says, messages, or token ids.
        system, thinking, raw: see `kad.text.prompts.encode`.
        base_prompt: the prompt of the base model. None: the pair's own, if it has one.

    Raises:
        UsageError: a base prompt that needs the text of the prompt, which has token ids only; or as `encode`.
    """
    ids = encode(model.tokenizer, prompt, system=system, thinking=thinking, raw=raw)
    if base_prompt is not None and not isinstance(base_prompt, str | Mapping | BasePrompt):
        return Context(ids, list(base_prompt))
    own = model.base_prompt if base_prompt is None else BasePrompt.parse(base_prompt)
    if own is None:
        return Context(ids)
    if not isinstance(prompt, str) and all(isinstance(item, int) for item in prompt):
        raise OptionError(
            "The base model has a prompt of its own, which is made from a text or messages, but the prompt is token "
            'ids. Give the text, or `base_prompt` as token ids, or `base_prompt="same"`.'
        )
    said: Any = prompt
    return own_context(model, ids, own, messages(said, system))


def own_context(
    model: ComposedModel, ids: Sequence[int], base_prompt: BasePrompt, conversation: Sequence[Message]
) -> Context:
    """What the models read where the base model is asked in a way of its own.

    Args:
        model: the pair.
        ids: the tokens of the aligned model's prompt.
        base_prompt: how the base model is asked.
        conversation: what has been said, the question last.
    """
    text = base_prompt.line_break_for_space().render(conversation)
    return Context(list(ids), encode_plain(model.tokenizer, text), base_prompt.stops)


@lru_cache(maxsize=8)
def _stops_of(tokenizer: Any, stops: tuple[bytes, ...]) -> Stops:
    return Stops(TokenBytes.of(tokenizer, len(tokenizer)), stops)

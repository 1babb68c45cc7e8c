"""The composition in force for a model: its own, or another one during a call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from kad.errors import RuleError
from kad.method.composition import Composition, RuleLike
from kad.method.rules import Rule
from kad.pair.base_prompt import BasePrompt

# The compositions of the current calls in this context, by the id of the model. Other models and threads see none.
_CALLS: ContextVar[Mapping[int, Composition] | None] = ContextVar("kad_compositions_of_calls", default=None)


class InForce:
    """A model that composes by the composition in force. Its configuration stores its own one as strings."""

    config: Any  # a KadConfig
    reference: Any
    _own: Composition

    @property
    def composition(self) -> Composition:
        """The rule and deferral temperature in force: those of the current call, else the model's own."""
        return (_CALLS.get() or {}).get(id(self), self._own)

    @property
    def rule(self) -> Rule:
        """The rule in force."""
        return self.composition.rule

    @rule.setter
    def rule(self, rule: RuleLike) -> None:
        self.own_composition = (
            rule if isinstance(rule, Composition) else Composition.of(rule, self._own.deferral_temperature)
        )

    @property
    def own_composition(self) -> Composition:
        """The model's own composition, which is in force outside of calls."""
        return self._own

    @own_composition.setter
    def own_composition(self, composition: Composition) -> None:
        self._own = self._checked(composition)
        self.config.rule = str(composition.rule)
        self.config.deferral_temperature = composition.deferral_temperature

    @property
    def base_prompt(self) -> BasePrompt | None:
        """How the base model is asked. None: it reads the aligned model's prompt. Assign what `kad.generate` takes."""
        return BasePrompt.parse(self.config.base_prompt)

    @base_prompt.setter
    def base_prompt(self, given: Any) -> None:
        self.config.set_base_prompt(given)

    def composed_by(self, rule: RuleLike | None = None, deferral_temperature: float | None = None) -> Composition:
        """The composition in force with this rule and deferral temperature (None: leave as it is).

        Raises:
            RuleError: a bad rule or temperature, or a rule that needs the reference model without it.
        """
        now = self.composition
        if not isinstance(rule, Composition):
            rule = Composition.of(now.rule if rule is None else rule, now.deferral_temperature)
        return self._checked(Composition.of(rule, deferral_temperature))

    @contextmanager
    def using(self, rule: RuleLike | None = None, deferral_temperature: float | None = None) -> Iterator[None]:
        """Compose this model by another rule within a block, in this thread only.

        Arguments and errors are those of `composed_by`.
        """
        token = _CALLS.set({**(_CALLS.get() or {}), id(self): self.composed_by(rule, deferral_temperature)})
        try:
            yield
        finally:
            _CALLS.reset(token)

    def _checked(self, composition: Composition) -> Composition:
        if composition.rule.needs_reference and self.reference is None:
            raise RuleError(
                f"Rule {composition.rule} needs the reference model; the pair has none. Give one: reference=..."
            )
        return composition

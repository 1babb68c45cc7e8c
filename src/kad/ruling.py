"""The rule in force: the pair's own, or for the length of a call another one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from transformers import PreTrainedModel

from kad.composition import Composition
from kad.errors import RuleError
from kad.rules import Rule, parse_rule

# The composition of the `generate` call under way in this context; it does not leak into other threads' calls.
_CALL: ContextVar[Composition | None] = ContextVar("kad_composition_of_this_call", default=None)


class Ruled:
    """A model that composes by the rule in force; its configuration holds the pair's own."""

    config: Any  # a KadConfig, whose vocabulary is known by now
    reference: PreTrainedModel | None

    @property
    def composition(self) -> Composition:
        """The rule and deferral temperature in force: those of the `generate` call under way, else the pair's."""
        return _CALL.get() or Composition(parse_rule(self.config.rule), self.config.deferral_temperature)

    @property
    def rule(self) -> Rule:
        """The rule in force."""
        return self.composition.rule

    @rule.setter
    def rule(self, rule: str | Mapping[str, Any] | Rule) -> None:
        parsed = parse_rule(rule)
        self._check_rule(parsed)
        self.config.rule = str(parsed)

    @contextmanager
    def using(
        self, rule: str | Mapping[str, Any] | Rule | None = None, deferral_temperature: float | None = None
    ) -> Iterator[None]:
        """Within the block, in this thread, compose by this rule and deferral temperature (None: leave as it is).

        Raises:
            RuleError: a bad rule, or one that needs the reference model without it.
        """
        now = self.composition
        chosen = now.rule if rule is None else parse_rule(rule)
        self._check_rule(chosen)
        temperature = now.deferral_temperature if deferral_temperature is None else deferral_temperature
        token = _CALL.set(Composition(chosen, temperature))
        try:
            yield
        finally:
            _CALL.reset(token)

    def _check_rule(self, rule: Rule) -> None:
        if rule.needs_reference and self.reference is None:
            raise RuleError(f"Rule {rule} needs the reference model; the pair has none. Give one: reference=...")

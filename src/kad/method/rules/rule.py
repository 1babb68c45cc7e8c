"""What a rule is: the families of composition, the registry, and how a rule is written as a string or a dict."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from kad.errors import RuleError
from kad.method.rules.plugins import Plugins, SkippedPlugin

if TYPE_CHECKING:
    from torch import Tensor

    from kad.method.distribution import Distribution


@dataclass(frozen=True)
class Rule(ABC):
    """The base of all rules: a name, parameters that are plain floats, and two ways to write a rule."""

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    needs_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            low, high = field.metadata.get("range", (-math.inf, math.inf))
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise RuleError(
                    f"{self.name}: {field.name} must be a number {_describe_range(low, high)}, but is {value!r}."
                    f"{field.metadata.get('hint', '')}"
                )
            if not math.isfinite(value):
                raise RuleError(f"{self.name}: {field.name} must be finite, but is {value!r}.")
            object.__setattr__(self, field.name, float(value))

    def __str__(self) -> str:
        parameters = ",".join(f"{key}={value!r}" for key, value in asdict(self).items())
        return f"{self.name}:{parameters}" if parameters else self.name

    def to_dict(self) -> dict[str, Any]:
        """The rule as JSON: its name under "rule", and its parameters. `parse_rule` reads it back."""
        return {"rule": self.name, **asdict(self)}


class CascadeRule(Rule):
    """pi_v = k_v p_v + alpha q*_v: a token drawn from p is kept with probability k_v, else q* draws."""

    @abstractmethod
    def keep(self, log_p: Tensor, log_aligned: Tensor) -> Tensor:
        """The keep probabilities k in [0, 1].

        Args:
            log_p: (..., vocab), log-probabilities of the base model p.
            log_aligned: (..., vocab), log-probabilities of the aligned model q*.

        Returns:
            (..., vocab), in the dtype of `log_p`.
        """


class ThresholdRule(CascadeRule):
    """A cascade that keeps exactly the tokens with p_v >= tau, one scalar tau for each row.

    The threshold is given as a *cutoff on the base logits*, log tau + log_z. Comparing logits with a logit needs no
    probabilities. It is exact where tau is the probability of one of the tokens.

    Attributes:
        reads_aligned: whether `cutoff` reads q*. If not, the kept tokens are known before q* is.
    """

    reads_aligned: ClassVar[bool] = True

    @abstractmethod
    def cutoff(self, base: Distribution, aligned: Distribution) -> Tensor:
        """The smallest base logit that is kept, (...,). -inf keeps every token, and +inf keeps none."""

    def log_tau(self, base: Distribution, aligned: Distribution) -> Tensor:
        """log tau, (...,), from the cutoff."""
        return self.cutoff(base, aligned) - base.log_z

    def keep(self, log_p: Tensor, log_aligned: Tensor) -> Tensor:
        """k_v = 1 where p_v >= tau, else 0. See `CascadeRule.keep`."""
        from kad.method.distribution import Distribution

        base, aligned = Distribution.of(log_p, "log_p"), Distribution.of(log_aligned, "log_aligned")
        return (base.logits >= self.cutoff(base, aligned).unsqueeze(-1)).to(log_p.dtype)


class ProductRule(Rule):
    """pi_v ∝ exp(combine(...)_v): a weighted product of the models' distributions."""

    needs_reference: ClassVar[bool] = True

    @abstractmethod
    def combine(self, log_p: Tensor, log_aligned: Tensor, log_reference: Any) -> Tensor:
        """Unnormalized log-weights (..., vocab) from the log-probabilities of base, aligned and reference model.

        A rule that says `needs_reference = False` gets None for the reference model.
        """


_RuleClass = TypeVar("_RuleClass", bound=type[Rule])
_REGISTRY: dict[str, type[Rule]] = {}


def register(cls: _RuleClass) -> _RuleClass:
    """Class decorator that makes a rule known by its `name` to `parse_rule`, the command line and the vLLM plugin.

    Raises:
        RuleError: the class is not a rule or lacks an attribute, or its name is taken or is not a lower-case word.
    """
    if not (isinstance(cls, type) and issubclass(cls, Rule)):
        raise RuleError(f"A rule is a class derived from kad.rules.Rule, but got {cls!r}.")
    missing = [word for word in ("name", "summary", "source") if not isinstance(getattr(cls, word, None), str)]
    missing += sorted(cls.__abstractmethods__)
    if missing:
        raise RuleError(f"The rule {cls.__qualname__} must define {', '.join(missing)}.")
    if not cls.name.isidentifier() or cls.name != cls.name.lower():
        raise RuleError(f"A rule's name must be a lower-case identifier, but is {cls.name!r}.")
    known = _REGISTRY.setdefault(cls.name, cls)
    if known is not cls and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise RuleError(f"The rule name {cls.name!r} is taken by {known.__qualname__}; choose another one.")
    _REGISTRY[cls.name] = cls
    return cls


_PLUGINS = Plugins(_REGISTRY, register)


def registry() -> Mapping[str, type[Rule]]:
    """All rules by name, also those of installed plugins. Read-only, in the order of registration."""
    _PLUGINS.load()
    return MappingProxyType(_REGISTRY)


def skipped_plugins() -> tuple[SkippedPlugin, ...]:
    """The installed plugins whose rules could not be used, each with the reason."""
    _PLUGINS.load()
    return tuple(_PLUGINS.skipped)


def package_of(rule: type[Rule]) -> str:
    """Where a registered rule comes from: the plugin's package with its version, else the rule's top-level module."""
    return _PLUGINS.packages.get(rule.name) or rule.__module__.partition(".")[0]


def parse_rule(rule: str | Mapping[str, Any] | Rule) -> Rule:
    """A rule from its string ("dual:threshold=0.4"), its dict ({"rule": "dual", "threshold": 0.4}), or itself.

    Parameters that are left out take their defaults. Where a rule has one parameter alone, "dual:0.4" says it, too.

    Raises:
        RuleError: unknown rule, unknown or repeated parameter, a value that is no number or out of range.
    """
    if isinstance(rule, Rule):
        return rule
    if not isinstance(rule, str | Mapping):
        raise RuleError(f"A rule is a string, a dict or a Rule, but got {type(rule).__name__}: {rule!r}.")
    name = rule.strip().partition(":")[0] if isinstance(rule, str) else str(rule.get("rule", ""))
    if name not in _REGISTRY:
        _PLUGINS.load()
    if name not in _REGISTRY:
        raise RuleError(f"Unknown rule {name!r}. Choose from: {', '.join(_REGISTRY)}.{_meant(name)}")
    cls = _REGISTRY[name]
    known = [field.name for field in fields(cls)]
    parameters: dict[str, Any]
    if isinstance(rule, str):
        parameters = _parse_string(rule, known)
    else:
        parameters = {key: value for key, value in rule.items() if key != "rule"}
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise RuleError(
            f"{name} has no parameter {', '.join(map(repr, unknown))}. It takes: {', '.join(known) or 'none'}."
        )
    return cls(**parameters)


def _meant(name: str) -> str:
    """A guess at a mistyped rule: "duel", "Dual", or "dual=0.4"."""
    head, equals, value = name.lower().replace("-", "_").partition("=")
    close = get_close_matches(head[:40], _REGISTRY, n=1, cutoff=0.7)
    if not close:
        return ""
    parameter = next((field.name for field in fields(_REGISTRY[close[0]])), None)
    guess = f"{close[0]}:{parameter}={value}" if equals and parameter else close[0]
    return f" Did you mean {guess}?"


def _parse_string(text: str, known: Sequence[str]) -> dict[str, Any]:
    """The parameters in a rule's string. `known` are those that the rule has."""
    parts = [part.strip() for part in text.partition(":")[2].split(",") if part.strip()]
    parameters: dict[str, Any] = {}
    for part in parts:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals and len(parts) == len(known) == 1:
            key, value = known[0], part
        elif not equals or key in parameters:
            problem = "repeats" if equals else "needs name=value instead of"
            raise RuleError(f"Rule {text!r} {problem} {part!r}. Write it like dual:threshold=0.4.")
        try:
            parameters[key] = float(value)
        except ValueError:
            raise RuleError(f"Rule {text!r}: {key} must be a number, but is {value!r}.") from None
    return parameters


def _describe_range(low: float, high: float) -> str:
    if math.isinf(low) and math.isinf(high):
        return "of any size"
    return f">= {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"

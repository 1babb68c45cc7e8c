"""A grid over one parameter of a rule, or over the number of drafts: the methods of a sweep."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from fractions import Fraction

from kad.errors import UsageError
from kad.evaluation.methods import Method, Speculation
from kad.method.rules import Rule, parse_rule

WINDOW = "num_draft_tokens"
# A mistyped step should not start a thousand evaluations.
_MOST_VALUES = 200


@dataclass(frozen=True)
class Point:
    """One value of the grid and the method that it makes."""

    parameter: str
    value: float | str
    method: Method


def make_grid(rule_text: str, parameter: str | None, values: str, *, speculative: bool = False) -> list[Point]:
    """The methods of a sweep.

    Args:
        rule_text: the rule whose parameter varies; other parameters keep the values given here.
        parameter: a parameter of the rule (by default its first), or "num_draft_tokens".
        values: "0.1,0.2,0.4", or "0.1:0.9:0.1" from start to stop in steps, both ends included.
        speculative: decode speculatively; implied by "num_draft_tokens".

    Raises:
        UsageError: a rule without parameters, an unknown parameter, or values that are not numbers.
        RuleError: a value outside of the rule's range.
    """
    rule = parse_rule(rule_text)
    known = [field.name for field in fields(rule)]
    chosen = parameter or next(iter(known), None)
    if chosen == WINDOW:
        counts = [value if value == "auto" else _count(value) for value in _split(values)]
        return [Point(WINDOW, count, Method("composed", rule, speculation=Speculation(count))) for count in counts]
    if chosen is None:
        raise UsageError(f"{rule.name} has no parameter to sweep. Give --parameter {WINDOW}, or choose another rule.")
    if chosen not in known:
        raise UsageError(
            f"{rule.name} has no parameter {chosen!r} to sweep. Choose from: {', '.join([*known, WINDOW])}."
        )
    speculation = Speculation() if speculative else None
    return [
        Point(chosen, number, Method("composed", _with(rule, chosen, number), speculation=speculation))
        for number in (float(value) for value in _numbers(values))
    ]


def _with(rule: Rule, parameter: str, value: float) -> Rule:
    return replace(rule, **{parameter: value})


def _numbers(text: str) -> list[Fraction]:
    """The numbers as exact decimals: 0.1:0.9:0.1 has nine values, and 0.3 is 0.3."""
    if ":" not in text:
        values = [_fraction(part, text) for part in _split(text)]
        if len(set(values)) < len(values):
            raise UsageError(f"The grid {text!r} holds a value twice. Give each once.")
        return values
    parts = [_fraction(part, text) for part in text.split(":")]
    if len(parts) != 3:
        raise UsageError(f"A grid is 0.1,0.2,0.4 or START:STOP:STEP, but got {text!r}.")
    start, stop, step = parts
    if step <= 0 or stop < start or (stop - start) / step >= _MOST_VALUES:
        raise UsageError(
            f"The grid {text!r} has no value, or more than {_MOST_VALUES}. Give a positive step that ends sooner."
        )
    return [start + index * step for index in range(int((stop - start) / step) + 1)]


def _fraction(text: str, grid: str) -> Fraction:
    try:
        return Fraction(text.strip())
    except (ValueError, ZeroDivisionError):
        raise UsageError(
            f"The grid {grid!r} holds {text!r}, which is no number. Give values like 0.1,0.2,0.4."
        ) from None


def _count(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"num_draft_tokens takes whole numbers or auto, but the grid holds {text!r}.") from None


def _split(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UsageError("The grid is empty. Give values like 0.1,0.2,0.4.")
    return parts

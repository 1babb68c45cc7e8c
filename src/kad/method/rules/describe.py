"""A rule as plain values: for `kad rules`, for traces and for the server."""

from __future__ import annotations

import math
from dataclasses import MISSING, Field, fields
from typing import Any

from kad.method.rules.rule import CascadeRule, Rule, ThresholdRule, package_of


def describe(rule: type[Rule]) -> dict[str, Any]:
    """Name, family, parameters with default and range, summary, source, package of a class of rules."""
    return {
        "name": rule.name,
        "family": family(rule),
        "parameters": [_parameter(field) for field in fields(rule)],
        "summary": rule.summary,
        "source": rule.source,
        "package": package_of(rule),
        "needs_reference": rule.needs_reference,
    }


def family(rule: type[Rule]) -> str:
    """ "threshold" (keeps p >= tau), "cascade" (any other keep probabilities), or "product"."""
    if issubclass(rule, ThresholdRule):
        return "threshold"
    return "cascade" if issubclass(rule, CascadeRule) else "product"


def _parameter(field: Field[Any]) -> dict[str, Any]:
    low, high = field.metadata.get("range", (-math.inf, math.inf))
    default = None if field.default is MISSING else field.default
    return {"name": field.name, "default": default, "min": low, "max": high}

"""Which pair? Every command and function that takes a pair, or its models one by one, asks here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kad.errors import OptionError
from kad.method.rules import Rule, parse_rule
from kad.pair.config import KadConfig
from kad.pair.folder import read_config
from kad.pair.sources import Source, check_sources

EMBEDDED = "tiny"
"""The pair where nobody names one."""


def resolve(
    pair: str | None = None,
    *,
    base: str | Source | None = None,
    aligned: str | Source | None = None,
    reference: str | Source | None = None,
    rule: str | Mapping[str, Any] | Rule | None = None,
    deferral_temperature: float | None = None,
    base_prompt: Any = None,
) -> KadConfig:
    """The configuration of a pair, from its name or from the names of its models. No weights are read.

    Args:
        pair: a folder, a hub id, or "tiny", which is the default.
        base, aligned, reference: the models, if there is no pair.
        rule, deferral_temperature, base_prompt: replace the pair's own.

    Raises:
        OptionError: both a pair and models, one model without the other, or a rule that lacks the reference model.
        PairError: no such pair.
        RuleError: a bad rule.
    """
    check_sources(pair, base, aligned, reference)
    replaced = {} if rule is None else {"rule": parse_rule(rule)}
    if base is None or aligned is None:
        config = read_config(pair or EMBEDDED)
    else:
        if rule is not None and reference is None and replaced["rule"].needs_reference:
            raise OptionError(f"Rule {replaced['rule']} needs the reference model. Give one with `reference`.")
        named = {"base": base, "aligned": aligned, "reference": reference}
        config = KadConfig(**{role: name for role, name in named.items() if name is not None})
    config.replace(**replaced, deferral_temperature=deferral_temperature, base_prompt=base_prompt)
    return config

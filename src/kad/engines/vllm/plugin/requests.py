"""The rule of one request: `SamplingParams(extra_args={"rule": "dual:threshold=0.6"})`, or `vllm_xargs` over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from functools import lru_cache, wraps
from typing import Any

import torch

from kad.errors import LogitsError, RuleError
from kad.method.composition import compose
from kad.method.rules import Rule, parse_rule, registry

RULE_ARGUMENT = "rule"
_LARGE_VOCABULARY = 1 << 18
# A rule is a name and a few numbers. The server keeps rules in memory, so a client may not send more.
_LONGEST_RULE = 256
_MOST_RULES = 1024
_LONGEST_QUOTE = 60


def rule_of(params: Any) -> Rule | None:
    """The rule that a request's SamplingParams ask for, or None if it goes by the pair's own."""
    value = (getattr(params, "extra_args", None) or {}).get(RULE_ARGUMENT)
    if value is None:
        return None
    if not isinstance(value, str | Mapping):
        raise RuleError(
            f"The request's {RULE_ARGUMENT!r} must be a string such as 'dual:threshold=0.4' or an object with a 'rule' "
            f"and its parameters, but is {_quoted(value)}."
        )
    length = len(value if isinstance(value, str) else repr(value))
    if length > _LONGEST_RULE:
        raise RuleError(
            f"The request's {RULE_ARGUMENT!r} is {length:,} characters long ({_quoted(value)}), but at most "
            f"{_LONGEST_RULE} are allowed. Write it like dual:threshold=0.4."
        )
    return _parse(value) if isinstance(value, str) else parse_rule(value)


def check_request(params: Any, has_reference: bool) -> None:
    """Refuse a request whose rule this pair cannot carry out, or with a key that looks like a mistyped "rule"."""
    _check_keys(getattr(params, "extra_args", None) or {})
    rule = rule_of(params)
    if rule is None:
        return
    if rule.needs_reference and not has_reference:
        raise RuleError(
            f"The request's rule {rule} needs a reference model, but this pair has none. Ask for another rule, or "
            "serve a pair with a reference."
        )
    _check_in_range(rule)


def _check_keys(extra_args: Mapping[str, Any]) -> None:
    """Refuse a key that must have been meant for the rule: vLLM would ignore it, and the pair's own rule would answer.

    Other keys may belong to other plugins of vLLM and pass.
    """
    ours = {field.name for rule in registry().values() for field in fields(rule)} | set(registry())
    for key in extra_args:
        name = str(key).lower()
        meant = get_close_matches(name[:_LONGEST_RULE], [RULE_ARGUMENT], cutoff=0.75) or RULE_ARGUMENT in name
        if key != RULE_ARGUMENT and (meant or name in ours):
            raise RuleError(
                f"The request's extra arguments have an unknown key {_quoted(key)}. A rule and its parameters are one "
                f'string under the key {RULE_ARGUMENT!r}: {{"rule": "dual:threshold=0.4"}}.'
            )


def _quoted(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}..."


@lru_cache(maxsize=_MOST_RULES)
def _check_in_range(rule: Rule) -> None:
    """Compose the extremes of what models say, sure of one token and of none; overflow would end the engine later."""
    sure = torch.tensor([[1e4, 0.0, -1e4], [0.0, -1e4, 1e4], [-1e4, 1e4, 0.0]])
    try:
        compose(rule, sure, sure.roll(1, 0), sure.roll(2, 0))
        compose(rule, *torch.zeros(3, _LARGE_VOCABULARY))
    except LogitsError as error:
        raise RuleError(
            f"The request's rule {rule} goes beyond what float32 can hold: there are logits from which it composes no "
            "distribution. Choose smaller parameters."
        ) from error


def check_at_the_door() -> None:
    """Have vLLM check the rule of each request where it checks its other parameters: before the engine sees it."""
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import SamplingParams

    from kad.engines.vllm.plugin.view import PairView

    verify = SamplingParams.verify
    if getattr(verify, "knows_rules", False):
        return

    @wraps(verify)
    def verify_with_rule(self: SamplingParams, model_config: Any, *args: Any, **kwargs: Any) -> None:
        verify(self, model_config, *args, **kwargs)
        view = model_config.hf_config
        if isinstance(view, PairView):
            try:
                check_request(self, view.reference is not None)
            except RuleError as error:
                raise VLLMValidationError(str(error), parameter=RULE_ARGUMENT) from error

    verify_with_rule.knows_rules = True  # type: ignore[attr-defined]
    SamplingParams.verify = verify_with_rule


# Requests repeat the same few rules at every step.
_parse = lru_cache(maxsize=_MOST_RULES)(parse_rule)

"""Before and after models are loaded: a rule is checked, Transformers is silenced, doubts about the models are said."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from logging import ERROR, getLogger
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kad.method.rules import Rule


def doubts(names: Mapping[str, object], parameters: Mapping[str, int] | None = None) -> Iterator[str]:
    """What is allowed but probably not meant.

    Args:
        names: the models by role, equal where they are the same model.
        parameters: their sizes by role, where they are known.
    """
    if names["base"] == names["aligned"]:
        yield "base and aligned are the same model; the composition is that model, if both get the same prompt."
    elif parameters is not None and parameters["aligned"] > parameters["base"]:
        yield "the aligned model is bigger than the base model; did you mix them up?"


def quiet_transformers() -> None:
    """Silence Transformers' bars and remarks; errors still come as exceptions."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    from kad.engines.transformers.loading import loading_bars

    logging.set_verbosity_error()
    loading_bars(False)
    # Its lines about every retry say no more than the exception at the end.
    getLogger("huggingface_hub").setLevel(ERROR)


def check_rule(rule: str | None) -> Rule | None:
    """The rule, parsed; a bad one is refused before models are loaded for it.

    Raises:
        RuleError: naming the value and what is allowed.
    """
    if rule is None:
        return None
    from kad.method.rules import parse_rule

    return parse_rule(rule)

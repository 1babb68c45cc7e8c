"""The models that the options name: checked before anything heavy is imported, then loaded."""

from __future__ import annotations

import os
from logging import ERROR, getLogger
from typing import TYPE_CHECKING

from kad.engines.load import load

if TYPE_CHECKING:
    from kad.cli.options import ModelOptions
    from kad.engines.load import Loaded
    from kad.rules import Rule


def load_model(options: ModelOptions) -> Loaded:
    """The composed model that the options name: `kad.load` without messages."""
    options.check_sources()
    rule = check_rule(options.rule)
    quiet_transformers()
    return load(
        options.pair,
        base=options.base,
        aligned=options.aligned,
        reference=options.reference,
        rule=rule,
        deferral_temperature=options.deferral_temperature,
        base_prompt=options.base_prompt,
        dtype=options.dtype,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
        engine=options.engine,
        engine_options=options.engine_options,
    )


def quiet_transformers() -> None:
    """Silence Transformers' bars and remarks; errors still come as exceptions."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Its lines about every retry say no more than the exception at the end.
    getLogger("huggingface_hub").setLevel(ERROR)


def check_rule(rule: str | None) -> Rule | None:
    """The rule, parsed; a bad one is refused before models are loaded for it.

    Raises:
        RuleError: naming the value and what is allowed.
    """
    if rule is None:
        return None
    from kad.rules import parse_rule

    return parse_rule(rule)

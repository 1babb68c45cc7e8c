"""The models that the options name: checked before anything heavy is imported, then loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from logging import ERROR, getLogger
from typing import TYPE_CHECKING

from kad.cli import stdio
from kad.engines.load import load

if TYPE_CHECKING:
    from kad.cli.options import ModelOptions
    from kad.engines.load import Loaded
    from kad.method.rules import Rule


def load_model(options: ModelOptions) -> Loaded:
    """The composed model that the options name: `kad.load` without messages."""
    options.check_sources()
    rule = check_rule(options.rule)
    quiet_transformers()
    model = load(
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
    sources = {role: str(source) for role, source in model.config.model_sources().items()}
    for note in doubts(sources, {role: facts.parameters for role, facts in model.facts.items()}):
        stdio.message(f"note: {note}")
    return model


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


def topic(options: ModelOptions, prompt: str) -> str | None:
    """What the embedded pair can talk about, for a prompt that it cannot answer: one without a number."""
    if options.pair not in (None, "tiny") or options.base is not None or any(sign.isdigit() for sign in prompt):
        return None
    return (
        "the embedded pair knows word problems with sums and nothing else, such as: Ann has 5 pens. She buys 8 more. "
        "How many? Two real models: kad demo --real"
    )


def say_topic(options: ModelOptions, prompt: str) -> None:
    """`topic` as a note, for somebody who reads the messages."""
    note = topic(options, prompt)
    if note is not None and stdio.stderr().is_terminal:
        stdio.message(f"note: {note}")


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

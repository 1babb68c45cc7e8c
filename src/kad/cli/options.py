"""The options that several commands share. Importing it is cheap: it needs `kad.options` and nothing else of kad.

Groups of options that belong to a part of the library are defined there, for example `RunOptions` in
`kad.evaluation.options`.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from kad.engines.files import SCORING_ENGINES
from kad.engines.load import DTYPES
from kad.errors import KadError, UsageError
from kad.options import Option, check_fields
from kad.pair.base_prompt import BasePrompt
from kad.pair.sources import check_sources, resolve_pair

if TYPE_CHECKING:
    from kad.engines.load import Loaded
    from kad.pair.config import KadConfig

Model = str | None
Json = Annotated[bool, Option("Print one JSON object, and nothing else, on standard output.", name="--json")]
PromptFile = Annotated[Path | None, Option("Read the prompt from a file.", "FILE", "-f")]
System = Annotated[str | None, Option("A system message before the conversation.", "TEXT")]
Thinking = Annotated[bool | None, Option("For chat templates with a thinking switch (Qwen3).", shown="the template's")]
Pair = Annotated[
    str | None, typer.Argument(metavar="PAIR", help="A pair: a folder, a hub id, or tiny, the embedded one.")
]
Raw = Annotated[bool, Option("Use the prompt without the chat template.")]


def check_raw(raw: bool, system: str | None, thinking: bool | None) -> None:
    """Refuse what needs the chat template beside a raw prompt.

    Raises:
        UsageError: both are given.
    """
    if raw and (system is not None or thinking is not None):
        raise UsageError("--raw uses no chat template: --system and --thinking would do nothing.")


def checked_base_prompt(text: str) -> str:
    """The same text, if it names a base prompt; see `BasePrompt.parse`."""
    BasePrompt.parse(text)
    return text


def import_modules(text: str) -> tuple[str, ...]:
    """Import modules, which register rules. The current folder is searched too.

    Raises:
        UsageError: one cannot be imported.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in names:
        try:
            import_module(name)
        except (ImportError, SyntaxError, KadError) as error:
            raise UsageError(f"Cannot import {name}: {error}. --import takes names like my_rules.") from error
    return names


@dataclass(frozen=True)
class ModelOptions:
    """Which models to compose, and how to compose and load them. The default is the embedded pair.

    Raises:
        UsageError: a value out of its range.
    """

    PANEL: ClassVar[str] = "Models"

    pair: Annotated[
        str | None,
        Option("A pair: a folder written by kad pack, a hub id, or tiny, the embedded pair.", "PAIR", shown="tiny"),
    ] = None
    base: Annotated[
        Model,
        Option(
            "The big base model: a folder, a GGUF file, a hub id (organization/name or organization/name@revision) or "
            "tiny:NAME.",
            "MODEL",
        ),
    ] = None
    aligned: Annotated[Model, Option("The small aligned model.", "MODEL")] = None
    reference: Annotated[
        Model, Option("The small model that the aligned model was made from. Product rules need it.", "MODEL")
    ] = None
    rule: Annotated[
        str | None,
        Option("The rule, for example dual:threshold=0.4. kad rules lists them.", "RULE", shown="the pair's"),
    ] = None
    deferral_temperature: Annotated[
        float | None,
        Option("Divide the models' logits by T before composing.", "T", allowed="> 0", shown="the pair's"),
    ] = None
    base_prompt: Annotated[
        str | None,
        Option(
            "How the base model is asked: qa, chat, plain, few-shot:FILE, a template with {question} or {messages}, a "
            "file with one, or same (as the aligned model).",
            "PROMPT",
            shown="the pair's",
            parse=checked_base_prompt,
        ),
    ] = None
    dtype: Annotated[
        str | None,
        Option(
            "Weights as float32, bfloat16, float16, or auto (as stored).", "DTYPE", allowed=DTYPES, shown="the pair's"
        ),
    ] = None
    device: Annotated[
        str | None,
        Option(
            "cpu, cuda, cuda:1, mps, or auto, which spreads the models over all devices (needs accelerate).",
            "DEVICE",
            shown="the pair's, else the first accelerator, else cpu",
        ),
    ] = None
    trust_remote_code: Annotated[bool, Option("Run code that comes with the models.")] = False
    imported: Annotated[
        tuple[str, ...],
        Option(
            "Import these Python modules first, with a rule of your own in them; separated by commas.",
            "MODULES",
            name="--import",
            parse=import_modules,
        ),
    ] = ()
    engine: Annotated[
        str,
        Option(
            "What runs the models: transformers, llama_cpp (GGUF files) or mlx (folders of MLX). auto follows the "
            "files of each model.",
            "ENGINE",
            allowed=SCORING_ENGINES,
        ),
    ] = "auto"
    engine_options: Annotated[
        dict[str, Any],
        Option(
            "How llama.cpp runs its models: context=8192, gpu_layers=20, threads=4, flash_attention=true, "
            "cache_type=q8_0. May be given several times.",
            "KEY=VALUE",
            name="--engine-option",
        ),
    ] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def name(self) -> str:
        """The pair's name for others: as it was given, or the names of its models."""
        from kad.tracing.tracer import public_name

        return self.pair or "+".join(public_name(model) for model in (self.base, self.aligned) if model) or "tiny"

    def of(self, pair: str | None) -> ModelOptions:
        """The same with the pair that stands before the options, if one does.

        Raises:
            UsageError: --pair names one, too.
        """
        if pair is None:
            return self
        if self.pair is not None:
            raise UsageError(f"The pair is named twice, {pair} and --pair {self.pair}. Leave one out.")
        return replace(self, pair=pair)

    def check_places(self) -> None:
        """What can be said about the sources before anything heavy is imported.

        Raises:
            UsageError: as `check_sources`.
            PairError: there is no pair where one is named.
        """
        self.check_sources()
        if self.base is None:
            resolve_pair(self.pair or "tiny")

    def check_sources(self) -> None:
        """Either a pair, or base and aligned model.

        Raises:
            UsageError: both, or one of the two models without the other.
        """
        check_sources(self.pair, self.base, self.aligned, self.reference)

    def resolve(self) -> KadConfig:
        """The configuration of the pair that the options name; see `kad.pair.resolve.resolve`."""
        from kad.pair.resolve import resolve

        return resolve(
            self.pair, base=self.base, aligned=self.aligned, reference=self.reference, rule=self.rule,
            deferral_temperature=self.deferral_temperature, base_prompt=self.base_prompt,
        )  # fmt: skip

    def load(self) -> Loaded:
        """The composed model; see `kad.cli.loading.load_model`."""
        from kad.cli import loading

        return loading.load_model(self)

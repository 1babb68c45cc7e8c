"""The options that several commands share, and what they stand for: a prompt, a composed model.

Importing this module loads neither torch nor Transformers. Options of a part of the library are defined in that part,
for example `RunOptions` in `kad.evaluation.run_options`.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from kad.cli import stdio
from kad.engines.load import DTYPES, SCORING_ENGINES, check, load, located
from kad.errors import KadError, UsageError
from kad.method.defaults import TEMPERATURES
from kad.method.rules import Rule, parse_rule
from kad.options import Option, check_fields
from kad.pair.base_prompt import BasePrompt

if TYPE_CHECKING:
    from kad.engines.load import Loaded
    from kad.pair.config import KadConfig
    from kad.pair.sources import Source
    from kad.server.listening import Listening

Json = Annotated[bool, Option("Print one JSON object, and nothing else, on standard output.", name="--json")]
PairArgument = Annotated[
    str | None, typer.Argument(metavar="PAIR", help="A pair: a folder, a hub id, or tiny, the embedded one.")
]


@dataclass(frozen=True)
class PromptOptions:
    """Where the prompt is, and its place in the chat template."""

    file: Annotated[Path | None, Option("Read the prompt from a file.", "FILE", "-f")] = None
    system: Annotated[str | None, Option("A system message before the conversation.", "TEXT")] = None
    raw: Annotated[bool, Option("Use the prompt without the chat template.")] = False
    thinking: Annotated[
        bool | None, Option("For chat templates with a thinking switch (Qwen3).", shown="the template's")
    ] = None

    def read(self, argument: str | None) -> str:
        """The prompt, see `read_prompt`. Raises UsageError for options of the chat template beside a raw prompt."""
        prompt = read_prompt(argument, self.file)
        if self.raw and (self.system is not None or self.thinking is not None):
            raise UsageError("--raw uses no chat template: --system and --thinking would do nothing.")
        return prompt

    @property
    def template(self) -> dict[str, Any]:
        """The arguments of `kad.generate` for the chat template."""
        return {"system": self.system, "thinking": self.thinking}


def read_prompt(argument: str | None, file: Path | None) -> str:
    """The prompt: the argument, a file, or standard input ("-", or nothing given and something piped in).

    One newline at the end of a file or of standard input belongs to the file, not to the prompt.

    Raises:
        UsageError: no prompt, two of them, an empty one, or a file that cannot be read as UTF-8.
    """
    if argument is not None and file is not None:
        raise UsageError("Give the prompt as an argument or with --file, not both.")
    if argument is None and file is None and sys.stdin.isatty():
        raise UsageError('No prompt. Give one as an argument (kad generate "..."), with --file, or on standard input.')
    prompt = argument if argument not in (None, "-") else _text_of(file)
    if prompt is None or not prompt.strip():
        raise UsageError("The prompt is empty.")
    return prompt


def _text_of(file: Path | None) -> str:
    name = "standard input" if file is None else str(file)
    try:
        raw = sys.stdin.buffer.read() if file is None else file.read_bytes()
        return raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text (byte {error.start}). Convert it first.") from error
    except OSError as error:
        raise UsageError(f"Cannot read {name}: {error.strerror}.") from error


def check_rule(rule: str | None) -> Rule | None:
    """The rule, parsed. A bad one raises RuleError here, before models are loaded for it."""
    return None if rule is None else parse_rule(rule)


def note_doubts(names: Mapping[str, object], parameters: Mapping[str, int | None] | None = None) -> None:
    """Write a note about what is allowed but probably not meant.

    Args:
        names: the models by role, equal where they are the same model.
        parameters: their sizes by role, where they are known.
    """
    if names["base"] == names["aligned"]:
        stdio.note("base and aligned are the same model; the composition is that model, if both get the same prompt.")
    elif parameters is not None and (parameters["aligned"] or 0) > (parameters["base"] or math.inf):
        stdio.note("the aligned model is bigger than the base model; did you mix them up?")


def _checked_base_prompt(text: str) -> str:
    BasePrompt.parse(text)
    return text


def _import_modules(text: str) -> tuple[str, ...]:
    """Import modules, which register rules. The current folder is searched too."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in names:
        try:
            import_module(name)
        except (ImportError, SyntaxError, KadError) as error:
            raise UsageError(f"Cannot import {name}: {error}. --import takes names like my_rules.") from error
    return names


def warn_if_open(listening: Listening) -> None:
    """Say it if other machines can use a server without a key."""
    if not listening.is_loopback and listening.key is None:
        stdio.message("Everybody who reaches this machine can use it: give --api-key, or set KAD_API_KEY.")


@dataclass(frozen=True)
class ModelOptions:
    """Which models to compose, and how to compose and load them. The default is the embedded pair."""

    PANEL: ClassVar[str] = "Models"

    pair: Annotated[
        str | None,
        Option("A pair: a folder written by kad pack, a hub id, or tiny, the embedded pair.", "PAIR", shown="tiny"),
    ] = None
    base: Annotated[
        str | None,
        Option(
            "The big base model: a folder, a GGUF file, a hub id (organization/name or organization/name@revision), "
            "tiny:NAME, a pair, or a server that runs it (http://HOST:8000/v1).",
            "MODEL",
        ),
    ] = None
    base_tokenizer: Annotated[
        str | None, Option("The tokenizer of a base model on a server: a folder or a hub id.", "MODEL")
    ] = None
    aligned: Annotated[str | None, Option("The small aligned model.", "MODEL")] = None
    reference: Annotated[
        str | None, Option("The small model that the aligned model was made from. Product rules need it.", "MODEL")
    ] = None
    rule: Annotated[
        str | None,
        Option("The rule, for example dual:threshold=0.4. kad rules lists them.", "RULE", shown="the pair's"),
    ] = None
    deferral_temperature: Annotated[
        float | None,
        Option(
            "Divide every model's logits by T before composing. The papers' temperature is this one; give "
            "--temperature 1 beside it.",
            "T",
            allowed=TEMPERATURES,
            shown="the pair's",
        ),
    ] = None
    base_prompt: Annotated[
        str | None,
        Option(
            "How the base model is asked: qa, chat, plain, few-shot:FILE, a template with {question} or {messages}, a "
            "file with one, or same (as the aligned model). :ends=aligned or :ends=base after it says who ends an "
            "answer, if not both models by the rule.",
            "PROMPT",
            shown="the pair's",
            parse=_checked_base_prompt,
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
            parse=_import_modules,
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
        """A name for the pair: the one on the command line, or the names of its models."""
        from kad.tracing.tracer import public_name

        return self.pair or "+".join(public_name(model) for model in (self.base, self.aligned) if model) or "tiny"

    def of(self, pair: str | None) -> ModelOptions:
        """The same with the argument PAIR, if there is one. Raises UsageError if --pair names one, too."""
        if pair is not None and self.pair is not None:
            raise UsageError(f"The pair is named twice, {pair} and --pair {self.pair}. Leave one out.")
        return self if pair is None else replace(self, pair=pair)

    @property
    def base_source(self) -> str | Source | None:
        """The base model, with its tokenizer if it is on a server."""
        return located(self.base, self.base_tokenizer)

    def check(self) -> None:
        """Refuse at once what nobody has to load for; see `kad.engines.load.check`."""
        check(
            self.pair, self.base_source, self.aligned, self.reference,
            engine=self.engine, rule=self.rule, dtype=self.dtype, device=self.device,
        )  # fmt: skip

    def resolve(self) -> KadConfig:
        """The configuration of the pair that the options name; see `kad.pair.folder.resolve`."""
        self.check()
        stdio.quiet_transformers()
        from kad.pair.folder import resolve

        return resolve(
            self.pair, base=self.base_source, aligned=self.aligned, reference=self.reference, rule=self.rule,
            deferral_temperature=self.deferral_temperature, base_prompt=self.base_prompt,
            trust_remote_code=self.trust_remote_code,
        )  # fmt: skip

    def load(self) -> Loaded:
        """The composed model: `kad.load` without the bars and remarks of Transformers."""
        self.check()
        stdio.quiet_transformers()
        options: dict[str, Any] = {name: value for name, value in vars(self).items() if name != "imported"}
        model: Loaded = load(**options)
        sources = {role: str(source) for role, source in model.config.model_sources().items()}
        note_doubts(sources, {role: facts.parameters for role, facts in model.facts.items()})
        return model

    @property
    def embedded(self) -> bool:
        """Whether they name the embedded pair."""
        return self.pair in (None, "tiny") and self.base is None

    def topic(self, prompt: str = "") -> str | None:
        """What the embedded pair can talk about, for a prompt that it cannot answer: one without a number."""
        if not self.embedded or any(sign.isdigit() for sign in prompt):
            return None
        return (
            "the embedded pair knows word problems with sums and nothing else, such as: Ann has 5 pens. She buys 8 "
            "more. How many? Two real models: kad demo --real"
        )

    def say_topic(self, prompt: str) -> None:
        """Write `topic` as a note, if standard error is a terminal."""
        topic = self.topic(prompt)
        if topic is not None and stdio.stderr().is_terminal:
            stdio.note(topic)

"""`kad pack`: write a pair folder from the places of its models, without loading weights."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Group, RenderableType
from rich.syntax import Syntax
from rich.text import Text

from kad.cli import stdio
from kad.cli.common import Json, ModelOptions, note_doubts
from kad.cli.flatten import Only, Prefix
from kad.engines.load import DTYPES
from kad.errors import UsageError
from kad.method import defaults
from kad.options import Option
from kad.pair.sources import Source, check_target

if TYPE_CHECKING:
    from kad.pair.config import KadConfig

EXAMPLES = (
    "kad pack --base Qwen/Qwen3-14B-Base --aligned Qwen/Qwen3-1.7B -o qwen3-pair",
    "kad pack --base allenai/OLMo-2-1124-13B --aligned allenai/OLMo-2-0425-1B-Instruct@main -o olmo-pair",
    "kad pack --base ./big --aligned ./small --rule primal:budget=0.9 --base-dtype bfloat16 -o my-pair",
    "kad pack --base ./big --aligned ./gguf --aligned-gguf-file model-q8_0.gguf -o my-pair",
    "kad pack --base ./big --aligned ./small --reference ./small-base --rule implicit_reward -o my-pair",
)


_MODELS = ModelOptions(rule=defaults.RULE, deferral_temperature=1.0)


@dataclass(frozen=True)
class LoadOptions:
    """How one model of the pair is loaded, where it differs from the others."""

    dtype: Annotated[str | None, Option("Like --dtype, for this model.", "DTYPE", allowed=DTYPES)] = None
    gguf_file: Annotated[str | None, Option("Load the weights from this GGUF file of the model.", "FILE")] = None
    subfolder: Annotated[str | None, Option("The folder inside the model's repository.", "DIR")] = None
    others: Annotated[
        dict[str, Any],
        Option(
            "Any other loading option (device_map, attn_implementation, quantization_config, ...). The value is JSON.",
            "KEY=VALUE",
            name="--option",
        ),
    ] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The options that have a value."""
        named = {"dtype": self.dtype, "gguf_file": self.gguf_file, "subfolder": self.subfolder}
        return {key: value for key, value in named.items() if value is not None} | self.others


def command(
    *,
    models: Annotated[
        ModelOptions, Only("base", "aligned", "reference", "rule", "deferral_temperature", "base_prompt", "imported")
    ] = _MODELS,
    dtype: Annotated[
        str | None,
        Option("Weights as float32, bfloat16, float16 or auto (as stored).", "DTYPE", allowed=DTYPES),
    ] = None,
    out: Annotated[Path | None, Option("The folder to write.", "DIR", "-o")] = None,
    trust_remote_code: Annotated[
        bool, Option("Run code that comes with the models, now. Loading the pair asks again.")
    ] = False,
    as_json: Json = False,
    of_base: Annotated[LoadOptions, Prefix("base", "How to load the base model")],
    of_aligned: Annotated[LoadOptions, Prefix("aligned", "How to load the aligned model")],
    of_reference: Annotated[LoadOptions, Prefix("reference", "How to load the reference model")],
) -> None:
    """Write a pair folder: which models, which rule.

    A pair is a folder of a few KB without weights. It holds the names of the models, and the tokenizer, chat template
    and generation settings of the aligned model. The command loads configurations and tokenizers only, and checks that
    they match.
    """
    if models.base is None or models.aligned is None or out is None:
        needed = {"--base": models.base, "--aligned": models.aligned, "--out": out}
        raise UsageError(f"kad pack needs {', '.join(name for name, value in needed.items() if value is None)}.")
    models.check()
    check_target(out)
    stdio.check_folder(out.parent, f"the pair {out}")
    own = {"base": of_base, "aligned": of_aligned, "reference": of_reference}
    sources = {}
    for role, load in own.items():
        name = getattr(models, role)
        if name is not None:
            sources[role] = _source(name, dtype, trust_remote_code, load)
        elif load.to_dict():
            raise UsageError(f"There are loading options for the {role} model, but no --{role}.")
    stdio.quiet_transformers()
    from kad.pair import folder as pairs

    config = pairs.pack(
        sources, out, rule=models.rule or defaults.RULE, deferral_temperature=models.deferral_temperature or 1.0,
        base_prompt=models.base_prompt,
    )  # fmt: skip
    note_doubts(sources)
    files = {file.name: file.stat().st_size for file in sorted(out.iterdir()) if file.is_file()}
    names = ("base", "aligned", "reference", "rule", "deferral_temperature", "base_prompt", "vocab_size")
    result = {"pair": str(out), "files": files, **{name: getattr(config, name) for name in names}}
    stdio.print_result(result, as_json, lambda: _how_to_load(out, config, sum(files.values())), soft_wrap=True)


def _source(name: str, dtype: str | None, trust_remote_code: bool, load: LoadOptions) -> Source:
    options = ({} if dtype is None else {"dtype": dtype}) | ({"trust_remote_code": True} if trust_remote_code else {})
    source = Source.parse(name)
    return Source(source.model, source.revision, source.kwargs | options | load.to_dict())


def _how_to_load(folder: Path, config: KadConfig, size: int) -> Group:
    facts = f" ({size / 1000:.0f} KB, no weights): {config.rule}, {config.vocab_size} tokens."
    return Group(
        Text.assemble("Wrote ", (str(folder), "bold"), facts),
        Text("\nHere", style="dim"),
        _code(f'kad generate --pair {shlex.quote(str(folder))} "..."', "bash"),
        Text("\nTransformers", style="dim"),
        _code(f"import kad\nmodel = kad.KadForCausalLM.from_pretrained({json.dumps(str(folder))})", "python"),
        *_for_vllm(folder, config),
    )


def _for_vllm(folder: Path, config: KadConfig) -> list[RenderableType]:
    from kad.pair.parts import parts_of, read_config

    options = {
        key for part in (config.base, config.aligned, config.reference) for key in (part or {}).get("kwargs", {})
    }
    if any(part.config is not None for part in parts_of(read_config(str(folder))).values()):
        return [Text("\nvLLM cannot run a pair with a pair in it.", style="dim")]
    if options & {"gguf_file", "subfolder"}:
        return [Text("\nvLLM cannot load a model from a GGUF file or a subfolder of a pair.", style="dim")]
    return [Text("\nvLLM", style="dim"), _code(f"vllm serve {shlex.quote(str(folder))}", "bash")]


def _code(code: str, language: str) -> Syntax:
    return Syntax(code, language, theme="ansi_dark", background_color="default", padding=(0, 2))

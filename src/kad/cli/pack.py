"""`kad pack`: write a pair folder from references, without loading weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.syntax import Syntax
from rich.text import Text

from kad.cli import loading, options, stdio
from kad.errors import UsageError

if TYPE_CHECKING:
    from kad.config import KadConfig
    from kad.sources import Source

EXAMPLES = (
    "kad pack --base Qwen/Qwen3-14B-Base --aligned Qwen/Qwen3-1.7B -o qwen3-pair",
    "kad pack --base allenai/OLMo-2-1124-13B --aligned allenai/OLMo-2-0425-1B-Instruct@main -o olmo-pair",
    "kad pack --base ./big --aligned ./small --rule primal:budget=0.9 --base-dtype bfloat16 -o my-pair",
    "kad pack --base ./big --aligned ./gguf --aligned-gguf-file model-q8_0.gguf -o my-pair",
    "kad pack --base ./big --aligned ./small --reference ./small-base --rule implicit_reward -o my-pair",
)


def _panel(role: str) -> str:
    return f"How to load the {role} model"


def _dtype(role: str) -> Any:
    return typer.Option(f"--{role}-dtype", metavar="DTYPE", help="As --dtype.", rich_help_panel=_panel(role))


def _gguf(role: str) -> Any:
    return typer.Option(
        f"--{role}-gguf-file", metavar="FILE", help="Weights from this GGUF file of it.", rich_help_panel=_panel(role)
    )


def _subfolder(role: str) -> Any:
    return typer.Option(
        f"--{role}-subfolder", metavar="DIR", help="The folder inside its repository.", rich_help_panel=_panel(role)
    )


def _option(role: str) -> Any:
    return typer.Option(
        f"--{role}-option",
        metavar="KEY=VALUE",
        help="Any other loading option (device_map, attn_implementation, quantization_config, ...), its value as JSON.",
        rich_help_panel=_panel(role),
    )


def command(
    base: options.Base = None,
    aligned: options.Aligned = None,
    reference: options.Reference = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="The folder to write.")] = None,
    rule: Annotated[
        str, typer.Option("--rule", metavar="RULE", help="The pair's rule; kad rules lists them.")
    ] = "dual:threshold=0.4",
    deferral_temperature: Annotated[
        float,
        typer.Option("--deferral-temperature", metavar="T", help="Divide the models' logits by T before composing."),
    ] = 1.0,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="DTYPE", help="Weights as float32, bfloat16, float16 or auto (as stored)."),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="Run code that comes with the models, now. Loading the pair asks again."
        ),
    ] = False,
    as_json: options.Json = False,
    base_dtype: Annotated[str | None, _dtype("base")] = None,
    base_gguf_file: Annotated[str | None, _gguf("base")] = None,
    base_subfolder: Annotated[str | None, _subfolder("base")] = None,
    base_option: Annotated[list[str] | None, _option("base")] = None,
    aligned_dtype: Annotated[str | None, _dtype("aligned")] = None,
    aligned_gguf_file: Annotated[str | None, _gguf("aligned")] = None,
    aligned_subfolder: Annotated[str | None, _subfolder("aligned")] = None,
    aligned_option: Annotated[list[str] | None, _option("aligned")] = None,
    reference_dtype: Annotated[str | None, _dtype("reference")] = None,
    reference_gguf_file: Annotated[str | None, _gguf("reference")] = None,
    reference_subfolder: Annotated[str | None, _subfolder("reference")] = None,
    reference_option: Annotated[list[str] | None, _option("reference")] = None,
) -> None:
    """Write a pair folder: which models, which rule.

    A pair is a folder of a few KB without weights: the configuration that names the models, and the aligned model's
    tokenizer, chat template and generation settings. Nothing is loaded but configurations and tokenizers, which are
    checked against each other.
    """
    if base is None or aligned is None or output is None:
        needed = {"--base": base, "--aligned": aligned, "--output": output}
        raise UsageError(f"kad pack needs {', '.join(name for name, value in needed.items() if value is None)}.")
    own = {
        "base": (base, base_dtype, base_gguf_file, base_subfolder, base_option),
        "aligned": (aligned, aligned_dtype, aligned_gguf_file, aligned_subfolder, aligned_option),
        "reference": (reference, reference_dtype, reference_gguf_file, reference_subfolder, reference_option),
    }
    loading.check_composition(rule, deferral_temperature)
    loading.quiet_transformers()
    from kad import pairs

    loading.check_dtype(dtype)
    references = {}
    for role, (name, own_dtype, gguf_file, subfolder, others) in own.items():
        if name is not None:
            references[role] = _reference(
                role, name, own_dtype or dtype, gguf_file, subfolder, others or [], trust_remote_code
            )
        elif own_dtype or gguf_file or subfolder or others:
            raise UsageError(f"There are loading options for the {role} model, but no --{role}.")
    config = pairs.pack(references, output, rule=rule, deferral_temperature=deferral_temperature)
    if as_json:
        stdio.print_json(_as_dict(output, config))
    else:
        stdio.stdout().print(_how_to_load(output, config), soft_wrap=True)


def _reference(
    role: str,
    name: str,
    dtype: str | None,
    gguf_file: str | None,
    subfolder: str | None,
    others: list[str],
    trust_remote_code: bool,
) -> Source:
    from kad.sources import Source

    loading.check_dtype(dtype, f"--{role}-dtype")
    named = {"dtype": dtype, "gguf_file": gguf_file, "subfolder": subfolder}
    kwargs: dict[str, Any] = {key: value for key, value in named.items() if value is not None}
    kwargs.update(loading.key_and_value(f"--{role}-option", text) for text in others)
    if trust_remote_code:
        kwargs["trust_remote_code"] = True
    reference = Source.parse(name)
    return Source(reference.model, reference.revision, kwargs)


def _as_dict(folder: Path, config: KadConfig) -> dict[str, Any]:
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return {
        "pair": str(folder),
        "files": {file.name: file.stat().st_size for file in files},
        "base": config.base,
        "aligned": config.aligned,
        "reference": config.reference,
        "rule": config.rule,
        "deferral_temperature": config.deferral_temperature,
        "vocab_size": config.vocab_size,
    }


def _how_to_load(folder: Path, config: KadConfig) -> Group:
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    head = Text.assemble(
        "Wrote ",
        (str(folder), "bold"),
        f" ({size / 1000:.0f} KB, no weights): {config.rule}, {config.vocab_size} tokens.",
    )
    return Group(
        head,
        Text("\nHere", style="dim"),
        _code(f'kad generate --pair {folder} "..."', "bash"),
        Text("\nTransformers", style="dim"),
        _code(f'import kad\nmodel = kad.KadForCausalLM.from_pretrained("{folder}")', "python"),
        *_for_vllm(folder, config),
    )


def _for_vllm(folder: Path, config: KadConfig) -> list[RenderableType]:
    given = {key for part in (config.base, config.aligned, config.reference) for key in (part or {}).get("kwargs", {})}
    if given & {"gguf_file", "subfolder"}:
        return [Text("\nvLLM cannot load a model from a GGUF file or a subfolder of a pair.", style="dim")]
    return [Text("\nvLLM", style="dim"), _code(f"vllm serve {folder}", "bash")]


def _code(code: str, language: str) -> Syntax:
    return Syntax(code, language, theme="ansi_dark", background_color="default", padding=(0, 2))

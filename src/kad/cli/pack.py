"""`kad pack`: write a pair folder from the places of its models, without loading weights."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Group, RenderableType
from rich.syntax import Syntax
from rich.text import Text

from kad.cli import info, stdio
from kad.cli.common import Json, ModelOptions, note_doubts
from kad.cli.flatten import Only, Prefix
from kad.engines.load import DTYPES
from kad.errors import UsageError
from kad.method import defaults
from kad.options import Option
from kad.pair.sources import CARD_FILES, Source, check_card, check_target, is_pair

if TYPE_CHECKING:
    from kad.pair.config import KadConfig

EXAMPLES = (
    "kad pack --base Qwen/Qwen3-14B-Base --aligned Qwen/Qwen3-1.7B -o qwen3-pair",
    "kad pack --base allenai/OLMo-2-1124-13B --aligned allenai/OLMo-2-0425-1B-Instruct@main -o olmo-pair",
    "kad pack --base ./big --aligned ./small --rule primal:budget=0.9 --base-dtype bfloat16 -o my-pair",
    "kad pack --base ./big --aligned ./gguf --aligned-gguf-file model-q8_0.gguf -o my-pair",
    "kad pack --base ./big --aligned ./small --reference ./small-base --rule implicit_reward -o my-pair",
    "kad pack --card --probe -o my-pair",
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
        ModelOptions,
        Only(
            "base", "base_tokenizer", "aligned", "reference", "rule", "deferral_temperature", "base_prompt", "imported"
        ),
    ] = _MODELS,
    dtype: Annotated[
        str | None,
        Option("Weights as float32, bfloat16, float16 or auto (as stored).", "DTYPE", allowed=DTYPES),
    ] = None,
    out: Annotated[Path | None, Option("The folder to write.", "DIR", "-o")] = None,
    trust_remote_code: Annotated[
        bool, Option("Run code that comes with the models, now. Loading the pair asks again.")
    ] = False,
    card: Annotated[
        bool,
        Option(
            "Also write README.md as the model hub shows it, and the loop for Transformers' custom_generate. Without "
            "--base and --aligned: of the pair that is in the folder."
        ),
    ] = False,
    probe: Annotated[bool, Option("Also load the pair, and put into the card what kad info --probe measures.")] = False,
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
    if probe and not card:
        raise UsageError("--probe belongs to --card; give both.")
    if card and out is not None:
        check_card(out)
    loading = {"base": of_base, "aligned": of_aligned, "reference": of_reference}
    if card and out is not None and is_pair(out) and models.base is None and models.aligned is None:
        if (
            models != replace(_MODELS, imported=models.imported)
            or dtype
            or any(map(LoadOptions.to_dict, loading.values()))
        ):
            raise UsageError("A card is about the pair as it is: leave out what would change the pair.")
    else:
        out = _packed(models, loading, dtype, out, trust_remote_code)
    if card:
        own = ModelOptions(pair=str(out), imported=models.imported, trust_remote_code=trust_remote_code)
        write_card_of(own, probe)
    from kad.pair.parts import read_config

    config = read_config(str(out))
    written = [*(file for file in sorted(out.iterdir()) if file.is_file()), *(out / name for name in CARD_FILES[1:])]
    files = {file.relative_to(out).as_posix(): file.stat().st_size for file in written if file.is_file()}
    names = ("base", "aligned", "reference", "rule", "deferral_temperature", "base_prompt", "vocab_size")
    result = {"pair": str(out), "files": files, **{name: getattr(config, name) for name in names}}
    stdio.print_result(result, as_json, lambda: _how_to_load(out, config, sum(files.values())), soft_wrap=True)


def _packed(
    models: ModelOptions, loading: dict[str, LoadOptions], dtype: str | None, out: Path | None, trust_remote_code: bool
) -> Path:
    """Write the pair of the options, and answer with its folder."""
    if models.base is None or models.aligned is None or out is None:
        needed = {"--base": models.base, "--aligned": models.aligned, "--out": out}
        raise UsageError(f"kad pack needs {', '.join(name for name, value in needed.items() if value is None)}.")
    models.check()
    check_target(out)
    stdio.check_folder(out.parent, f"the pair {out}")
    sources = {}
    for role, load in loading.items():
        name = getattr(models, role)
        if name is not None:
            place = models.base_source if role == "base" else name
            sources[role] = _source(place, dtype, trust_remote_code, load)
        elif load.to_dict():
            raise UsageError(f"There are loading options for the {role} model, but no --{role}.")
    stdio.quiet_transformers()
    from kad.pair import folder as pairs

    pairs.pack(
        sources, out, rule=models.rule or defaults.RULE, deferral_temperature=models.deferral_temperature or 1.0,
        base_prompt=models.base_prompt,
    )  # fmt: skip
    note_doubts(sources)
    return out


def write_card_of(models: ModelOptions, probe: bool = False) -> None:
    """Write the card of the pair folder that the options name."""
    from kad.engines.load import engines_of
    from kad.pair.card import write_card
    from kad.pair.parts import leaves_of, parts_of

    config = models.resolve()
    measured = info.probed(models, info.probe_prompts(models)) if probe else None
    write_card(Path(models.pair or ""), config, set(engines_of(leaves_of(parts_of(config))).values()), measured)


def _source(place: Any, dtype: str | None, trust_remote_code: bool, load: LoadOptions) -> Source:
    options = ({} if dtype is None else {"dtype": dtype}) | ({"trust_remote_code": True} if trust_remote_code else {})
    source = Source.parse(place)
    if source.url is None:
        return replace(source, kwargs=source.kwargs | options | load.to_dict())
    if load.to_dict():
        raise UsageError("The base model is on a server, which has loaded it: leave out how to load it.")
    return source


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

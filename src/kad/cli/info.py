"""`kad info`: the parts of a pair, without loading weights; or the versions and devices of this installation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from kad.cli import common, environment, stdio
from kad.cli.flatten import Only
from kad.cli.questions import read_lines
from kad.cli.stdio import WRONG_INPUT
from kad.errors import PairError, UsageError, VocabularyError
from kad.options import Option
from kad.words import count_text, counted, size_text

if TYPE_CHECKING:
    from kad.pair.parts import Part
    from kad.pair.sources import Source
    from kad.text.prompts import Prompt

EXAMPLES = (
    "kad info tiny",
    "kad info my-pair",
    "kad info --base Qwen/Qwen3-14B-Base --aligned Qwen/Qwen3-1.7B",
    "kad info my-pair --json | jq .memory",
    "kad info tiny --probe",
    "kad info --environment",
)

# Tokens of context for which the memory of the key-value caches is worked out.
_CONTEXTS = (1024, 8192, 32768)


@dataclass(frozen=True)
class Description:
    """One model of a pair, as its configuration describes it.

    Attributes:
        architecture: the class that Transformers makes of it, or llama.cpp's name of it. Of a model on a server, the
            place of its tokenizer.
        parameters: number of weights, tied ones counted once. None of a model on a server, which is not asked.
        dtype: in which it is loaded, or how its weights are quantized.
        vocabulary: rows of its output.
        context: positions it was made for, or None.
        cache_bytes_per_token: memory of keys and values of one token in all layers.
        engine: what runs it here, see `kad.engines.load`.
        soft_cap: the bound that it puts on its logits, or None.
    """

    name: str
    architecture: str
    parameters: int | None
    dtype: str
    vocabulary: int
    context: int | None
    weight_bytes: int
    cache_bytes_per_token: int
    engine: str = "transformers"
    soft_cap: float | None = None


def command(
    pair_argument: common.PairArgument = None,
    *,
    named: Annotated[
        common.ModelOptions,
        Only("base", "base_tokenizer", "aligned", "reference", "base_prompt", "imported", "trust_remote_code"),
    ],
    of_environment: Annotated[
        bool,
        Option("Show versions, system and devices instead, for a report of an error.", name="--environment"),
    ] = False,
    probe: Annotated[
        bool, Option("Also load the pair, let it answer, and show where its models disagree and what to try.")
    ] = False,
    prompts: Annotated[Path | None, Option("Ask --probe's questions from a file, one per line.", "FILE")] = None,
    as_json: common.Json = False,
) -> None:
    """Show a pair: models, sizes, vocabulary match, memory.

    Everything comes from configurations and tokenizers; no weights are loaded, unless you ask for --probe. Instead of a
    pair you can name models, to see whether they would make one. Models that do not fit give exit code 2.
    """
    if prompts is not None and not probe:
        raise UsageError("--prompts belongs to --probe; give both.")
    if named.base_prompt is not None and not probe:
        raise UsageError("--base-prompt belongs to --probe; give both.")
    questions = None if prompts is None else read_lines(prompts)
    named = named.of(pair_argument)
    if of_environment:
        if named.pair is not None or named.base is not None:
            raise UsageError("kad info --environment is about this installation: leave out the pair and the models.")
        versions = environment.environment()
        stdio.print_result(versions, as_json, lambda: environment.render(versions))
        return
    if named.pair is None and named.base is None:
        raise UsageError("kad info needs a pair (a folder, a hub id or tiny), or --base and --aligned.")
    config = named.resolve()
    from kad.pair.model_files import uneven_soft_caps
    from kad.pair.parts import leaves_of, parts_of

    parts = parts_of(config)
    sources, leaves = config.model_sources(), leaves_of(parts)
    models = {path: _describe(source) for path, source in leaves.items()}
    vocabulary = _vocabulary(sources, models)
    sizes = {role: _parameters(_once(part.leaves(role), models)) for role, part in parts.items()}
    # log pi has no bound of its own, so a pair has none.
    caps = {role: models[role].soft_cap if role in models else None for role in parts}
    facts = {
        "pair": named.pair,
        "rule": config.rule if named.pair is not None else None,
        "deferral_temperature": config.deferral_temperature if named.pair is not None else None,
        "models": {path: asdict(model) for path, model in models.items()},
        "pairs": _pairs(parts),
        "vocabulary": vocabulary,
        "soft_caps": uneven_soft_caps(caps),
        "memory": _memory(leaves, models),
        "draft_cost": _draft_cost(sizes["aligned"], sizes["base"]),
    }
    if probe and vocabulary["match"]:
        facts["probe"] = probed(named, questions or probe_prompts(named))
    stdio.print_result(facts, as_json, lambda: _render(facts, parts, models))
    common.note_doubts(sources, sizes)
    if not vocabulary["match"]:
        raise typer.Exit(WRONG_INPUT)


def _draft_cost(aligned: int | None, base: int | None) -> float | None:
    return aligned / base if aligned and base else None


def _once(leaves: Mapping[str, Source], models: Mapping[str, Description]) -> list[Description]:
    """The models of these places. What several places share is there once."""
    sources = list(leaves.values())
    return [models[path] for place, path in enumerate(leaves) if sources.index(leaves[path]) == place]


def _parameters(models: Sequence[Description]) -> int | None:
    """None if one of them does not say."""
    known = [model.parameters for model in models if model.parameters is not None]
    return sum(known) if len(known) == len(models) else None


def _pairs(parts: Mapping[str, Part], before: str = "") -> dict[str, Any]:
    """The pairs in the place of models, by their paths."""
    found: dict[str, Any] = {}
    for role, part in parts.items():
        if (config := part.config) is not None:
            rule = {"rule": config.rule, "deferral_temperature": config.deferral_temperature}
            found[before + role] = {"name": stdio.name_of(part.source), **rule}
            found |= _pairs(part.parts, f"{before}{role}.")
    return found


def _describe(source: Source) -> Description:
    """One model from its files, as its engine runs it."""
    from kad.engines.llama_cpp.header import read_header
    from kad.engines.load import engine_for
    from kad.pair.model_files import load_config, rows_of

    engine = engine_for(source)
    if engine == "remote":
        place = stdio.name_of(replace(source, url=None))
        return Description(stdio.name_of(source), place, None, "", rows_of(source), None, 0, 0, engine)
    if engine == "llama_cpp" and source.gguf_path is not None:
        header = read_header(source.gguf_path)
        return Description(
            name=stdio.name_of(source),
            architecture=header.architecture,
            parameters=header.parameters,
            dtype=header.weights,
            vocabulary=header.vocabulary,
            context=header.context,
            weight_bytes=header.weight_bytes,
            cache_bytes_per_token=2 * header.cache_numbers,  # f16 is the default
            engine=engine,
            soft_cap=header.soft_cap,
        )
    model = _describe_configuration(source)
    if engine == "mlx" and source.is_local:
        weights = sum(file.stat().st_size for file in Path(source.model).glob("*.safetensors"))
        quantization = getattr(load_config(source), "quantization", None)
        dtype = f"{quantization['bits']} bits" if quantization else model.dtype
        return replace(model, weight_bytes=weights, dtype=dtype, engine=engine)
    return model


def _describe_configuration(source: Source) -> Description:
    """One model from its configuration. Counted on torch's meta device, which allocates nothing."""
    import torch
    from transformers import AutoModelForCausalLM

    from kad.pair.model_files import load_config, soft_cap_of

    config = load_config(source)
    text = config.get_text_config()
    # The dtype in which Transformers would load it: what the pair says, else what the configuration says.
    name = str(source.kwargs.get("dtype", "auto"))
    dtype = config.dtype or torch.float32 if name == "auto" else getattr(torch, name.removeprefix("torch."))
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=source.trusted)
    except ValueError as error:
        text = f"{config.name_or_path} is no causal language model: its type is {config.model_type}."
        raise PairError(text) from error
    parameters = model.num_parameters()
    return Description(
        name=stdio.name_of(source),
        architecture=type(model).__name__,
        parameters=parameters,
        dtype=str(dtype).removeprefix("torch."),
        vocabulary=int(text.vocab_size),
        context=getattr(text, "max_position_embeddings", None),
        weight_bytes=parameters * torch.empty(0, dtype=dtype).element_size(),
        cache_bytes_per_token=_cache_numbers(text) * torch.empty(0, dtype=dtype).element_size(),
        soft_cap=soft_cap_of(text.to_dict()),
    )


def _cache_numbers(text: Any) -> int:
    """Keys and values of one token in all layers, every layer attending to everything."""
    heads = text.num_attention_heads
    key_value_heads = getattr(text, "num_key_value_heads", None) or heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return int(2 * text.num_hidden_layers * key_value_heads * head_size)


def _vocabulary(sources: dict[str, Source], models: dict[str, Description]) -> dict[str, Any]:
    from kad.pair.folder import vocabulary_in_files

    sizes = {role: models[role].vocabulary for role in sources if role in models}
    try:
        shared = vocabulary_in_files(sources, sizes)
    except VocabularyError as error:
        return {"match": False, "size": None, "foreign": None, "rows": sizes, "problem": str(error)}
    foreign = len(shared.foreign_ids)
    return {"match": True, "size": shared.vocab_size, "foreign": foreign, "rows": sizes, "problem": None}


def _memory(leaves: Mapping[str, Source], models: dict[str, Description]) -> dict[str, Any]:
    """Bytes of all models together: weights, caches per token, both at some lengths; and what drafting in vLLM adds.

    Weights that several places share count once. Each place has a cache.
    """
    weights = sum(model.weight_bytes for model in _once(leaves, models))
    per_token = sum(model.cache_bytes_per_token for model in models.values())
    longest = min((model.context for model in models.values() if model.context), default=max(_CONTEXTS))
    lengths = sorted({min(length, longest) for length in _CONTEXTS})
    for_vllm = all("." not in path and model.engine == "transformers" for path, model in models.items())
    aligned = models.get("aligned")
    draft = aligned and {"weights": aligned.weight_bytes, "cache_per_token": aligned.cache_bytes_per_token}
    return {
        "weights": weights,
        "cache_per_token": per_token,
        "total": {str(length): weights + length * per_token for length in lengths},
        "vllm_draft": draft if for_vllm else None,
    }


def _render(facts: dict[str, Any], parts: Mapping[str, Part], models: dict[str, Description]) -> Table:
    lines = _tree(parts, models, "", {})
    return stdio.facts([*lines, ("", ""), *_fact_rows(facts), *probe_lines(facts.get("probe"))])


def _tree(
    parts: Mapping[str, Part], models: Mapping[str, Description], before: str, shown: dict[str, Source]
) -> list[tuple[str, Text | str]]:
    """The parts of a pair, those of a pair in it below its name. `shown` are the models that stand above, by path."""
    lines: list[tuple[str, Text | str]] = []
    for role, part in parts.items():
        path = before + role
        lines.append((path, Text(stdio.name_of(part.source), style="bold")))
        if part.config is not None:
            lines.append(("", Text(f"a pair, {part.config.rule}")))
            lines += _tree(part.parts, models, f"{path}.", shown)
            continue
        twin = next((other for other, source in shown.items() if source == part.source), None)
        shown[path] = part.source
        texts = _model_lines(models[path]) if twin is None else [f"the same weights as {twin}"]
        lines += [("", Text(text)) for text in texts]
    return lines


def _model_lines(model: Description) -> list[str]:
    if model.engine == "remote":
        return [f"on a server, with the tokenizer {model.architecture}: no memory here"]
    context = f", {model.context:,} positions" if model.context else ""
    by = {"llama_cpp": ", run by llama.cpp", "mlx": ", run by MLX"}.get(model.engine, "")
    return [
        f"{model.architecture}, {count_text(model.parameters or 0)} parameters in {model.dtype}{context}{by}",
        f"{size_text(model.weight_bytes)} of weights, {size_text(model.cache_bytes_per_token)} of cache a token",
    ]


def _fact_rows(facts: dict[str, Any]) -> list[tuple[str, Text]]:
    vocabulary, memory, temperature = facts["vocabulary"], facts["memory"], facts["deferral_temperature"]
    rows = []
    if facts["rule"] is not None:
        note = f", deferral temperature {temperature:g}" if temperature != 1.0 else ""
        rows.append(("rule", Text(facts["rule"] + note)))
    rows.append(("vocabulary", _vocabulary_text(vocabulary)))
    if facts["soft_caps"] is not None:
        rows.append(("soft caps", Text(facts["soft_caps"], style="yellow")))
    totals = [f"{size_text(total)} with {counted(int(length), 'token')}" for length, total in memory["total"].items()]
    rows.append(("memory", Text(", ".join([f"{size_text(memory['weights'])} of weights", *totals]))))
    if (cost := facts["draft_cost"]) is not None:
        rows.append(("drafting", Text(f"the aligned model has {cost:.1%} of the base model's parameters")))
    if (draft := memory["vllm_draft"]) is not None:
        sizes = f"{size_text(draft['weights'])} of weights, {size_text(draft['cache_per_token'])} of cache a token"
        rows.append(("in vLLM", Text(f"drafting loads the aligned model once more: {sizes}")))
    return rows


def _vocabulary_text(vocabulary: dict[str, Any]) -> Text:
    if not vocabulary["match"]:
        return Text(f"no match: {vocabulary['problem']}", style="red")
    padded = ", ".join(f"{role} {rows:,}" for role, rows in vocabulary["rows"].items() if rows != vocabulary["size"])
    foreign = counted(vocabulary["foreign"], "special or reserved token")
    apart = f"; {foreign} not shared, left to the aligned model" if vocabulary["foreign"] else ""
    padding = f" (padded: {padded} rows)" if padded else ""
    return Text(f"one for all models, {counted(vocabulary['size'], 'token')}{padding}{apart}")


def probe_prompts(models: common.ModelOptions) -> Sequence[Prompt]:
    """The prompts of --probe where none are given: the embedded pair's own problems, or common requests."""
    from kad.figures.probe import PROMPTS
    from kad.tiny.problems import problems

    if models.pair == "tiny":
        return [problem.question for problem in problems("held-out", len(PROMPTS))]
    return PROMPTS


def probed(models: common.ModelOptions, prompts: Sequence[Prompt], thinking: bool | None = None) -> dict[str, Any]:
    """What the pair does on these prompts, as JSON, with what to try."""
    from kad.figures.probe import probe

    with stdio.stderr().status("Probing ..."):
        result = probe(models.load(), prompts, thinking=thinking)
    return {**asdict(result), "advice": result.advice()}


def probe_lines(probe: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The same for people: name and text of every line."""
    if probe is None:
        return []
    alpha, deferred = probe["deferred_mass"], probe["sure_deferred"]
    means = "" if alpha is None else f"deferred mass α {alpha:.3f}, "
    there = "" if deferred is None else f"; deferred mass there {deferred:.3f}"
    apart = [f"{row['base']!r} / {row['aligned']!r} ({row['positions']})" for row in probe["disagreements"]]
    return [
        ("probe", f"{counted(probe['answers'], 'greedy answer')}, {counted(probe['positions'], 'token')}"),
        ("", f"{means}acceptance {probe['acceptance']:.3f}, both prefer the same token at {probe['agreement']:.0%}"),
        ("sure", f"the base model gives one token 0.9 or more at {probe['sure']:.0%}{there}"),
        ("", f"there the aligned model prefers another token: at {probe['sure_apart']:.1%} of all"),
        ("apart", f"base / aligned: {', '.join(apart)}" if apart else "nowhere"),
        *(("try", text) for text in probe["advice"]),
    ]

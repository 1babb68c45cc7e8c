"""Pairs on disk and in memory: find and load the models, check that they fit, write the folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig, PreTrainedModel

from kad.config import KadConfig
from kad.errors import PairError
from kad.loading import load_generation_config, load_model, load_tokenizer
from kad.references import MODEL_KWARGS, ModelReference
from kad.rules import parse_rule
from kad.vocabulary import check_token_maps, common_size

if TYPE_CHECKING:
    from kad.modeling import KadForCausalLM

# How to find the pair itself, as opposed to its models.
_PAIR_OPTIONS = frozenset({"cache_dir", "force_download", "local_files_only", "revision", "token"})
# What the Auto classes pass along and a pair has no use for.
_AUTO_OPTIONS = frozenset(
    {"_commit_hash", "_from_auto", "adapter_kwargs", "code_revision", "low_cpu_mem_usage"}
)


@dataclass(frozen=True)
class Part:
    """One loaded model and where it came from (None for an object without a path)."""

    model: PreTrainedModel
    reference: ModelReference | None


def load_config(pair: Any, kwargs: dict[str, Any]) -> tuple[KadConfig, dict[str, Any]]:
    """The pair's configuration with the overrides in `kwargs` applied, and the options left for its models.

    Raises:
        PairError: no such pair, or an unknown option.
    """
    options = {key: value for key, value in kwargs.items() if key not in _AUTO_OPTIONS}
    config = options.pop("config", None)
    rule, temperature = options.pop("rule", None), options.pop("deferral_temperature", None)
    place = {key: options.pop(key) for key in _PAIR_OPTIONS if key in options}
    if "torch_dtype" in options:
        options.setdefault("dtype", options.pop("torch_dtype"))
    unknown = sorted(set(options) - MODEL_KWARGS)
    if unknown:
        known = sorted(MODEL_KWARGS | _PAIR_OPTIONS | {"rule", "deferral_temperature"})
        raise PairError(
            f"Unknown option {', '.join(map(repr, unknown))} for a pair. Allowed: {', '.join(known)}."
        )
    if config is None:
        config = read_config(pair, **place)
    if rule is not None:
        config.rule = str(parse_rule(rule))
    if temperature is not None:
        config.deferral_temperature = temperature
    return config, options


def read_config(pair: Any, **place: Any) -> KadConfig:
    """The `KadConfig` of a pair.

    Raises:
        PairError: no such pair, or a model that is no pair.
    """
    try:
        config = KadConfig.from_pretrained(pair, **place)
    except OSError as error:
        raise PairError(f"Cannot read the pair {pair}: {str(error).strip().splitlines()[0]}") from error
    if config.base is None or config.aligned is None:
        raise PairError(
            f"{pair} is not a pair: its config.json names no base and aligned model. "
            "Compose two models with --base and --aligned, or write a pair with kad pack."
        )
    return config  # type: ignore[no-any-return]


def load_parts(
    models: Mapping[str, Any], own: Mapping[str, Mapping[str, Any] | None], shared: Mapping[str, Any]
) -> dict[str, Part]:
    """Load every model that is not loaded yet, by role. `own` options are kept in the pair, `shared` ones win."""
    parts = {}
    for role, model in models.items():
        if model is None:
            continue
        if isinstance(model, PreTrainedModel):
            name = getattr(model, "name_or_path", "")
            parts[role] = Part(model.eval(), ModelReference.parse(name) if name else None)
            continue
        reference = ModelReference.parse(model)
        if own.get(role):
            reference = ModelReference(
                reference.model, reference.revision, {**reference.kwargs, **(own[role] or {})}
            )
        parts[role] = Part(load_model(reference, **shared), reference)
    return parts


def shared_vocabulary(parts: Mapping[str, Part]) -> int:
    """The number of tokens that all models share, after checking that their tokenizers agree.

    Models given as objects without a path have no tokenizer to check; their ids are taken to agree.

    Raises:
        VocabularyError: the token maps differ.
    """
    sizes = {role: int(part.model.config.get_text_config().vocab_size) for role, part in parts.items()}
    size = common_size(sizes)
    aligned = parts["aligned"].reference
    for role, part in parts.items():
        if role == "aligned" or part.reference is None or aligned is None or part.reference == aligned:
            continue
        try:
            maps = load_tokenizer(part.reference).get_vocab(), load_tokenizer(aligned).get_vocab()
        except PairError:
            if part.reference.is_local and aligned.is_local and not _has_tokenizer(part.reference):
                continue  # a folder of bare weights: nothing to compare
            raise
        check_token_maps(*maps, size, (role, "aligned"))
    return size


def generation_config(pair: str | None, aligned: Part) -> GenerationConfig:
    """The pair's generation settings, else the aligned model's: its end-of-sequence tokens end the text."""
    own = load_generation_config(ModelReference(pair)) if pair else None
    chosen = own or aligned.model.generation_config
    return GenerationConfig.from_dict(chosen.to_dict())


def save(model: KadForCausalLM, folder: Any, tokenizer: Any, options: Mapping[str, Any]) -> None:
    """Write the pair folder; see `KadForCausalLM.save_pretrained`. Files appear complete or not at all."""
    unknown = sorted(set(options) - {"safe_serialization", "is_main_process", "push_to_hub"})
    if unknown or options.get("push_to_hub"):
        raise PairError(
            f"save_pretrained of a pair takes a folder and a tokenizer, not {', '.join(options)}."
        )
    references = {role: getattr(model.config, role) for role in model.parts}
    unnamed = [role for role, reference in references.items() if reference is None]
    if unnamed:
        raise PairError(
            f"The {' and '.join(unnamed)} model was given as an object without a path. A pair names its models: "
            "save them first and give their folders or hub ids to from_models."
        )
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    parsed = {
        role: ModelReference.parse(reference) for role, reference in model.config.model_references().items()
    }
    config = KadConfig(
        **{role: reference.to_dict(relative_to=target) for role, reference in parsed.items()},
        rule=model.config.rule,
        deferral_temperature=model.config.deferral_temperature,
        vocab_size=model.config.vocab_size,
        architectures=["KadForCausalLM"],
    )
    tokenizer = tokenizer if tokenizer is not None else load_tokenizer(parsed["aligned"])
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        config.save_pretrained(scratch)
        model.generation_config.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        for file in Path(scratch).iterdir():
            shutil.move(file, target / file.name)


def _has_tokenizer(reference: ModelReference) -> bool:
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    return any((Path(reference.model) / name).is_file() for name in names) or "gguf_file" in reference.kwargs

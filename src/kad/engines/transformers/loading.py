"""Load models with Transformers: one from a `Source`, or all models of a pair, each once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel

from kad.engines.transformers.host import AutoQuantizationConfig
from kad.errors import PairError, UsageError, missing_extra
from kad.pair.adapters import adapted, inner_model, merged, share_weights
from kad.pair.folder import check_vocabularies
from kad.pair.model_files import TROUBLE, first_line, load_generation_config, reason_of
from kad.pair.sources import MODEL_KWARGS, Source
from kad.tokens.vocabulary import Common


@dataclass(frozen=True)
class LoadedPart:
    """One loaded model and where it came from (None for an object without a path)."""

    model: PreTrainedModel
    source: Source | None


def load_model(source: Source, **overrides: Any) -> PreTrainedModel:
    """Load a causal language model. `overrides` replace the source's own keyword arguments.

    Weights come from safetensors or GGUF files only. Remote code runs only with `trust_remote_code=True`.

    Raises:
        PairError: the model cannot be found or loaded. The message has Transformers' reason.
        MissingExtraError: a GGUF file without the packages that read it.
    """
    underneath = adapted(source)
    if underneath is not None:
        changed: PreTrainedModel = merged(load_model(underneath, **overrides), source)
        changed.generation_config = load_generation_config(source) or changed.generation_config
        return changed.eval()
    options = {"trust_remote_code": False, **source.kwargs, **overrides}
    unknown = sorted(set(options) - MODEL_KWARGS)
    if unknown:
        raise PairError(f"Unknown loading option {', '.join(unknown)}. Allowed: {', '.join(sorted(MODEL_KWARGS))}.")
    if options.get("gguf_file"):
        options.setdefault("quantization_config", {"quant_method": "gguf", "dequantize": True})
    else:
        options["use_safetensors"] = True
    if isinstance(options.get("quantization_config"), dict):
        options["quantization_config"] = AutoQuantizationConfig.from_dict(options["quantization_config"])
    if source.revision is not None:
        options["revision"] = source.revision
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(source.model, **options, output_loading_info=True)
    except SafetensorError as error:
        raise PairError(f"Cannot load {_damaged_file(source)}: the file is damaged or cut off ({error}).") from error
    except ImportError as error:
        if options.get("gguf_file"):
            raise missing_extra("gguf", "gguf (with accelerate)") from error
        raise PairError(f"Cannot load {source.model}: {first_line(error)}") from error
    except TROUBLE as error:
        raise PairError(f"Cannot load {source.model}: {reason_of(error)}") from error
    lacking = sorted(loaded["missing_keys"])
    if lacking and not {"gguf_file", "quantization_config"} & options.keys():
        raise PairError(
            f"Cannot load {source.model}: its config.json describes other weights than it has; {len(lacking)} are "
            f"missing, such as {lacking[0]}."
        )
    made: PreTrainedModel = model
    return made.eval()


def loading_bars(shown: bool) -> None:
    """Whether Transformers shows bars while it loads models. The one switch for all of kad, in this process."""
    from transformers.utils import logging

    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()


def load_parts(
    models: Mapping[str, Any], own: Mapping[str, Mapping[str, Any] | None], shared: Mapping[str, Any]
) -> dict[str, LoadedPart]:
    """Load every model that is not loaded yet, by role, once. `own` options are kept in the pair, `shared` ones win.

    Raises:
        PairError: a model cannot be found or loaded.
        UsageError: one object in two roles, with an adapter at work in it.
    """
    parts: dict[str, LoadedPart] = {}
    for role, model in models.items():
        if model is None:
            continue
        inner = inner_model(model)
        if inner is not model:
            bare = [other for other, given in models.items() if given is inner]
            if bare:
                raise UsageError(
                    f"The {bare[0]} model is the object in which the adapter of the {role} model works, so it has the "
                    f"adapter too. Give the {bare[0]} model as a folder or a hub id."
                )
            # Its own name is that of the model without the adapter.
            parts[role] = LoadedPart(inner.eval(), None)
            continue
        if isinstance(model, PreTrainedModel):
            name = getattr(model, "name_or_path", "")
            parts[role] = LoadedPart(model.eval(), Source.parse(name) if name else None)
            continue
        source = Source.parse(model)
        if own.get(role):
            source = Source(source.model, source.revision, {**source.kwargs, **(own[role] or {})})
        loaded = next((part for part in parts.values() if part.source == source), None)
        parts[role] = loaded or LoadedPart(load_model(source, **shared), source)
    if any(part.source is not None and adapted(part.source) for part in parts.values()):
        share_weights([part.model for part in parts.values()])
    return parts


def shared_vocabulary(parts: Mapping[str, LoadedPart]) -> Common:
    """The vocabulary that all loaded models share; see `check_vocabularies`."""
    sizes = {role: int(part.model.config.get_text_config().vocab_size) for role, part in parts.items()}
    return check_vocabularies(sizes, {role: part.source for role, part in parts.items()})


def _damaged_file(source: Source) -> str:
    """The file of a model on this machine that is no safetensors file; else the model."""
    for file in sorted(Path(source.model).glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError:
            return str(file)
    return source.model

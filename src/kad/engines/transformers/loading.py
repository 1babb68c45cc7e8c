"""Load models with Transformers: one from a `Source`, or all models of a pair, each once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel

from kad.engines.nested import PairAsModel, assembled
from kad.engines.pair import Pair, pair_of
from kad.engines.transformers.host import AutoQuantizationConfig
from kad.engines.transformers.model import TransformersModel
from kad.errors import PairError, UsageError, first_line, missing_extra
from kad.pair.adapters import adapted, inner_model, merged, share_weights
from kad.pair.model_files import TROUBLE, from_host, load_config, load_generation_config, reason_of
from kad.pair.parts import Part, part_of
from kad.pair.sources import MODEL_KWARGS, Source


def load_model(source: Source, **overrides: Any) -> PreTrainedModel:
    """Load a causal language model. `overrides` replace the source's own keyword arguments.

    Weights come from safetensors or GGUF files only. Remote code runs only with `trust_remote_code=True`.

    Raises:
        PairError: the model cannot be found or loaded. The message has Transformers' reason.
        MissingExtraError: a GGUF file without the packages that read it.
    """
    source.check_here("Transformers")
    underneath = adapted(source)
    if underneath is not None:
        changed: PreTrainedModel = merged(load_model(underneath, **overrides), source)
        changed.generation_config = load_generation_config(source) or changed.generation_config
        return changed.eval()
    options = {**source.kwargs, **overrides}
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
        model, loaded = from_host(AutoModelForCausalLM, source, **options, output_loading_info=True)
    except SafetensorError as error:
        raise PairError(f"Cannot load {_damaged_file(source)}: the file is damaged or cut off ({error}).") from error
    except ImportError as error:
        if options.get("gguf_file"):
            raise missing_extra("gguf", "gguf (with accelerate)") from error
        raise PairError(f"Cannot load {source.model}: {first_line(error)}") from error
    except PairError:
        raise
    except TROUBLE as error:
        raise PairError(f"Cannot load {source.model}: {reason_of(error)}") from error
    lacking = sorted(loaded["missing_keys"])
    if lacking and not {"gguf_file", "quantization_config"} & options.keys():
        if load_config(source).is_encoder_decoder:
            raise PairError(f"Cannot load {source.model}: it is an encoder-decoder, and kad composes decoders.")
        raise PairError(
            f"Cannot load {source.model}: its config.json describes other weights than it has; {len(lacking)} are "
            f"missing, such as {lacking[0]}."
        )
    return cast("PreTrainedModel", model.eval())


def loading_bars(shown: bool) -> None:
    """Whether Transformers shows bars while it loads models. The one switch for all of kad, in this process."""
    from transformers.utils import logging

    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()


def load_models(
    models: Mapping[str, Any], own: Mapping[str, Mapping[str, Any] | None], shared: Mapping[str, Any]
) -> dict[str, Any]:
    """Load every model that is not loaded yet, by role, once. `own` options are kept in the pair, `shared` ones win.

    A place may be that of a pair: then its models are loaded, and composed to one.

    Raises:
        PairError: a model cannot be found or loaded.
        UsageError: one object in two roles, with an adapter at work in it.
    """
    parts: dict[str, Part] = {}
    places: dict[str, Any] = {}
    for role, model in models.items():
        if isinstance(model, str | Path | Source):
            source = model if isinstance(model, Source) else Source.parse(str(model))
            source = replace(source, kwargs={**source.kwargs, **(own.get(role) or {})})
            parts[role] = part_of(source.trusted_by(shared.get("trust_remote_code") is True))
            places |= parts[role].leaves(role)
        elif model is not None:
            places[role] = model
    loaded = _load_each(places, shared)
    pairs = assembled(parts, loaded)
    return {role: pairs.get(role) or loaded[role] for role, model in models.items() if model is not None}


def _load_each(models: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """Single models, from their sources or as objects, and loaded pairs."""
    loaded: dict[str, Any] = {}
    for role, model in models.items():
        if isinstance(pair_of(model), Pair):
            loaded[role] = PairAsModel(pair_of(model))
            continue
        inner = inner_model(model)
        if inner is not model:
            bare = [other for other, object_ in models.items() if object_ is inner]
            if bare:
                raise UsageError(
                    f"The {bare[0]} model is the object in which the adapter of the {role} model works, so it has the "
                    f"adapter too. Give the {bare[0]} model as a folder or a hub id."
                )
            loaded[role] = TransformersModel(inner)  # its own name is that of the model without the adapter
        elif isinstance(model, PreTrainedModel):
            name = getattr(model, "name_or_path", "")
            loaded[role] = TransformersModel(model, Source.parse(name) if name else None)
        else:
            source = model if isinstance(model, Source) else Source.parse(model)
            twin = next((other for other in loaded.values() if other.source == source), None)
            loaded[role] = twin or TransformersModel(load_model(source, **shared), source)
    single = [model for model in loaded.values() if isinstance(model, TransformersModel)]
    if any(model.source is not None and adapted(model.source) for model in single):
        share_weights([model.model for model in single])
    return loaded


def _damaged_file(source: Source) -> str:
    """The file of a model on this machine that is no safetensors file; else the model."""
    for file in sorted(Path(source.model).glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError:
            return str(file)
    return source.model

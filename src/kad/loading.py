"""Load one model, its tokenizer and its generation settings from a `Source`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from kad.adapters import adapted, merged
from kad.errors import PairError, missing_extra
from kad.hosts.transformers import AutoQuantizationConfig
from kad.sources import MODEL_KWARGS, Source

# What a damaged file makes Transformers raise.
_TROUBLE = (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, StrictDataclassError)
_MOST_SHARED = 4
# Options that say where a model is. Its tokenizer and settings are there too.
_PLACE = ("cache_dir", "gguf_file", "local_files_only", "subfolder", "token", "trust_remote_code")


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
    except _TROUBLE as error:
        raise PairError(f"Cannot load {source.model}: {_reason(error)}") from error
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


def load_tokenizer(source: Source, config: Any = None) -> Any:
    """The model's tokenizer. `config` is its configuration, where it has been read already.

    Raises:
        PairError: there is none, or it cannot be loaded.
    """
    underneath = adapted(source)
    if underneath is not None and not (Path(source.model) / "tokenizer_config.json").is_file():
        return load_tokenizer(underneath)
    try:
        return AutoTokenizer.from_pretrained(source.model, config=config, **_place(source))
    except (*_TROUBLE, ImportError) as error:
        raise PairError(f"Cannot load the tokenizer of {source.model}: {_reason(error)}") from error


_SHARED: dict[str, Any] = {}


def shared_tokenizer(source: Source) -> Any:
    """As `load_tokenizer`, but loaded once. Reading a large one takes long. Nobody may change its settings."""
    key = json.dumps(source.to_dict(), sort_keys=True, default=str)
    if key not in _SHARED:
        _SHARED[key] = load_tokenizer(source)
        if len(_SHARED) > _MOST_SHARED:
            del _SHARED[next(iter(_SHARED))]
    return _SHARED[key]


def tokenizer_of(config: Any) -> Any:
    """The tokenizer of a pair, given its `KadConfig`: the pair's own, else the aligned model's.

    Raises:
        PairError: neither has one.
    """
    folder = config.folder
    if folder is not None and (folder / "tokenizer_config.json").is_file():
        return load_tokenizer(Source(str(folder)), config)
    try:
        return load_tokenizer(config.model_sources()["aligned"])
    except PairError:
        if folder is None and config.name_or_path:
            return load_tokenizer(Source(config.name_or_path))
        raise


def load_config(source: Source) -> Any:
    """The model's configuration, without its weights.

    Raises:
        PairError: there is none, or it cannot be read.
    """
    source = adapted(source) or source
    try:
        return AutoConfig.from_pretrained(source.model, **_place(source))
    except (*_TROUBLE, ImportError) as error:
        raise PairError(f"Cannot read the configuration of {source.model}: {_reason(error)}") from error


def load_generation_config(source: Source) -> GenerationConfig | None:
    """The model's generation settings. None if it has no file for them. An adapter may have its own."""
    underneath = adapted(source)
    if underneath is not None and not (Path(source.model) / "generation_config.json").is_file():
        return load_generation_config(underneath)
    place = {key: value for key, value in _place(source).items() if key not in ("gguf_file", "trust_remote_code")}
    try:
        return GenerationConfig.from_pretrained(source.model, **place)
    except OSError:
        return None


def download(source: Source, file: str) -> str:
    """The path of one file of a model on the hub, downloaded where it is not here yet.

    Raises:
        PairError: there is no such file, or the hub cannot be reached.
    """
    from transformers.utils import cached_file

    place = {key: value for key, value in _place(source).items() if key not in ("gguf_file", "trust_remote_code")}
    try:
        return str(cached_file(source.model, file, **place))
    except (OSError, ValueError) as error:
        raise PairError(f"Cannot get {file} of {source.model}: {first_line(error)}") from error


def _place(source: Source) -> dict[str, Any]:
    place = {key: source.kwargs[key] for key in _PLACE if key in source.kwargs}
    return place if source.revision is None else place | {"revision": source.revision}


def _reason(error: BaseException) -> str:
    if "ignore_mismatched_sizes" in str(error):
        return "its config.json describes weights of other sizes than it has."
    if "instantiate the backend tokenizer" in str(error):
        return "its folder has no tokenizer.json."
    if isinstance(error, StrictDataclassError):
        return " ".join(str(error).split())
    return first_line(error)


def _damaged_file(source: Source) -> str:
    """The file of a model on this machine that is no safetensors file; else the model."""
    for file in sorted(Path(source.model).glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError:
            return str(file)
    return source.model


def first_line(error: BaseException) -> str:
    """The first line of an error's message, else the name of its class."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

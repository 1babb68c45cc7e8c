"""What lies beside the weights of a model: its configuration, its tokenizer, its generation settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig

from kad.errors import MissingTokenizerError, PairError, first_line
from kad.pair.adapters import adapted
from kad.pair.gguf import check_gguf
from kad.pair.sources import Source

# What a damaged file makes Transformers raise.
TROUBLE = (
    OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError, ArithmeticError, AssertionError,
    StrictDataclassError,
)  # fmt: skip
_MOST_SHARED = 4
# What configurations call the soft cap of the logits: Gemma 2 to 4 and others, RecurrentGemma, xLSTM.
_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
# What kad itself reads of generation settings. The values of a list have the type.
_NUMBERS = "max_time temperature top_p min_p typical_p epsilon_cutoff eta_cutoff repetition_penalty"
_COUNTS = "max_new_tokens min_new_tokens max_length min_length num_beams top_k no_repeat_ngram_size"
_SETTINGS: dict[str, Any] = {
    **dict.fromkeys(_NUMBERS.split(), (int, float)), **dict.fromkeys(_COUNTS.split(), int),
    "eos_token_id": int, "bos_token_id": int, "pad_token_id": int, "stop_strings": str, "do_sample": bool,
}  # fmt: skip
_LISTS = ("eos_token_id", "stop_strings")
# Options that say where a model is. Its tokenizer and settings are there too.
_PLACE = {"cache_dir", "gguf_file", "local_files_only", "subfolder", "token"}


def from_host(loader: Any, source: Source, **options: Any) -> Any:
    """Call a host's `from_pretrained`. It is the one door for code that comes with a model.

    Left without an answer, Transformers asks on standard input, where kad reads prompts. So the answer is always given.
    """
    if source.kwargs.get("gguf_file"):
        # Transformers finds the file where it is then.
        check_gguf(Path(download(source, source.kwargs["gguf_file"])))
    elif loader is not AutoTokenizer:
        _check_configuration(source, loader)
    return loader.from_pretrained(source.model, **{**options, "trust_remote_code": source.trusted})


def configuration(source: Source) -> dict[str, Any] | None:
    """What the config.json of a model, or of a pair, says. None if it cannot be read; whoever loads it says why."""
    try:
        plain, _ = PreTrainedConfig.get_config_dict(source.model, **place_of(source))
    except (*TROUBLE, ImportError):
        return None
    return cast("dict[str, Any]", plain)


def _check_configuration(source: Source, loader: Any) -> None:
    """Refuse a pair that is loaded as one model, and a kernel of the hub, which Transformers would fetch and run."""
    plain = configuration(source)
    if plain is None:
        return
    if plain.get("model_type") == "kad" and (loader is not AutoConfig or "subfolder" in source.kwargs):
        raise PairError(f"{source.model} is a pair, and not one model. Name it by its own folder or hub id.")
    if source.trusted:
        return
    for part in (plain, *(value for value in plain.values() if isinstance(value, dict))):
        for name, value in part.items():
            if name.endswith("_implementation") and any("/" in str(one) for one in _leaves(value)):
                raise PairError(
                    f"{source.model} asks for code of the hub: {name} is {value!r}. It needs trust_remote_code."
                )


def _leaves(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else (value,)


def load_tokenizer(source: Source, config: Any = None) -> Any:
    """The model's tokenizer. `config` is its configuration, where it has been read already.

    Raises:
        PairError: there is none, or it cannot be loaded.
    """
    underneath = adapted(source)
    if underneath is not None and not (Path(source.model) / "tokenizer_config.json").is_file():
        return load_tokenizer(underneath)
    try:
        return from_host(AutoTokenizer, source, config=config, **place_of(source))
    except PairError:
        raise
    except (*TROUBLE, ImportError) as error:
        names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
        missing = source.is_local and "gguf_file" not in source.kwargs
        missing = missing and not any((Path(source.model) / name).is_file() for name in names)
        kind = MissingTokenizerError if missing else PairError
        raise kind(f"Cannot load the tokenizer of {source.model}: {reason_of(error)}") from error


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
    folder, own = config.folder, config.own_source
    if folder is not None and (folder / "tokenizer_config.json").is_file():
        return load_tokenizer(own, config)
    try:
        return load_tokenizer(config.model_sources()["aligned"])
    except PairError:
        if folder is None and own is not None:
            return load_tokenizer(own)
        raise


def load_config(source: Source) -> Any:
    """The model's configuration, without its weights.

    Raises:
        PairError: there is none, or it cannot be read.
    """
    source = adapted(source) or source
    try:
        return from_host(AutoConfig, source, **place_of(source))
    except PairError:
        raise
    except (*TROUBLE, ImportError) as error:
        raise PairError(f"Cannot read the configuration of {source.model}: {reason_of(error)}") from error


def rows_of(source: Source) -> int:
    """The number of a model's output rows. Beside the tokenizer of a model on a server there may be no configuration.

    Raises:
        PairError: its configuration, or else its tokenizer, cannot be read.
    """
    if source.url is not None and source.is_local and not (Path(source.model) / "config.json").is_file():
        return len(shared_tokenizer(source))
    return int(load_config(source).get_text_config().vocab_size)


def soft_cap_of(config: Mapping[str, Any]) -> float | None:
    """The bound that a model puts on its logits, cap * tanh(logits / cap). None if its configuration names none."""
    return next((float(config[name]) for name in _SOFT_CAPS if config.get(name)), None)


def rope_turns(config: PreTrainedConfig, kind: str) -> int | None:
    """The length at which the rotary frequencies change, if they are of this kind ("longrope", "dynamic"). Else None.

    What a model read with other frequencies is stale then.
    """
    text = config.get_text_config()
    given = getattr(text, "rope_parameters", None) or {}
    kinds = [given] if "rope_type" in given else [part for part in given.values() if isinstance(part, dict)]
    chosen = [part for part in kinds if part.get("rope_type") == kind]
    turns = [part.get("original_max_position_embeddings") or text.max_position_embeddings for part in chosen]
    return min(turns, default=None)


def uneven_soft_caps(caps: Mapping[str, float | None]) -> str | None:
    """What is the matter where some models, by role, soft-cap their logits and others do not. None: nothing."""
    capped = [f"{role} (at {cap:g})" for role, cap in caps.items() if cap]
    free = [role for role, cap in caps.items() if not cap]
    if not capped or not free:
        return None
    return (
        f"logits are soft-capped in {', '.join(capped)} and not in {', '.join(free)}, which distorts products of them"
    )


def load_generation_config(source: Source) -> GenerationConfig | None:
    """The model's generation settings. None if it has no file for them. An adapter may have its own."""
    underneath = adapted(source)
    if underneath is not None and not (Path(source.model) / "generation_config.json").is_file():
        return load_generation_config(underneath)
    try:
        settings = GenerationConfig.from_pretrained(source.model, **place_of(source, file=True))
    except OSError:
        return None
    except TROUBLE as error:
        raise PairError(f"Cannot read the generation settings of {source.model}: {reason_of(error)}") from error
    return checked_settings(settings, source.model)


def checked_settings(settings: GenerationConfig, place: str) -> GenerationConfig:
    """The settings, if the values that kad itself reads have the right types.

    Raises:
        PairError: they have not.
    """
    for name, kind in _SETTINGS.items():
        value = getattr(settings, name, None)
        values = value if isinstance(value, list | tuple) and name in _LISTS else [value]
        if value is not None and not all(isinstance(one, kind) for one in values):
            raise PairError(f"The generation_config.json of {place} has {str(value)[:80]!r} for {name}. Mend it.")
    return settings


def download(source: Source, file: str) -> str:
    """The path of one file of a model. A file of the hub is downloaded where it is not here yet.

    Raises:
        PairError: there is no such file, or the hub cannot be reached.
    """
    from transformers.utils import cached_file

    try:
        return str(cached_file(source.model, file, **place_of(source, file=True)))
    except (OSError, ValueError) as error:
        raise PairError(f"Cannot get {file} of {source.model}: {first_line(error)}") from error


def place_of(source: Source, *, file: bool = False) -> dict[str, Any]:
    """Where a model is; with `file`, where its files are that hold no weights and no code."""
    keys = _PLACE - {"gguf_file"} if file else _PLACE
    place = {key: source.kwargs[key] for key in keys & source.kwargs.keys()}
    return place if source.revision is None else place | {"revision": source.revision}


def reason_of(error: BaseException) -> str:
    """Why Transformers cannot read a model, in one line."""
    if "ignore_mismatched_sizes" in str(error):
        return "its config.json describes weights of other sizes than it has."
    if "instantiate the backend tokenizer" in str(error):
        return "its folder has no tokenizer.json."
    if "for this kind of AutoModel: AutoModelForCausalLM" in str(error):
        return "its type is none of Transformers' causal language models."
    if isinstance(error, StrictDataclassError):
        return " ".join(str(error).split())
    return first_line(error)

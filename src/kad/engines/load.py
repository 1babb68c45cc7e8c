"""Load a pair with the engine that fits its files, and put it on its device."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kad.engines.files import ENGINES, engines_of
from kad.errors import OptionError, PairError, UsageError, first_line

if TYPE_CHECKING:
    from pathlib import Path

    from kad.engines.pair import Pair
    from kad.engines.protocols import Model
    from kad.engines.transformers.modeling import KadForCausalLM
    from kad.method.rules import Rule
    from kad.pair.sources import Source

    Loaded = KadForCausalLM | Pair

DTYPES = ("auto", "float32", "bfloat16", "float16")
_SHARDING = ("auto", "balanced", "balanced_low_0", "sequential")


def load(
    pair: str | None = None,
    *,
    base: str | None = None,
    aligned: str | None = None,
    reference: str | None = None,
    engine: str = "auto",
    rule: str | Mapping[str, Any] | Rule | None = None,
    deferral_temperature: float | None = None,
    base_prompt: Any = None,
    dtype: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    engine_options: Mapping[str, Any] | None = None,
) -> Loaded:
    """Load a pair, ready for `kad.generate`, `kad.stream`, `kad.score` and `kad.trace`.

    Args:
        pair: a folder written by `kad pack`, a hub id, or "tiny", the embedded pair. "tiny" is the default.
        base: the base model, a folder, a GGUF file or a hub id, if there is no pair.
        aligned: the aligned model, if there is no pair.
        reference: the reference model, if there is no pair and the rule needs one.
        engine: "transformers", "llama_cpp" (GGUF files) or "mlx" (folders of MLX) for all models, or "auto": for each
            model the engine that its files are made for. "vllm" runs whole generations (`kad.generate` and
            `kad.stream`), many at once, with its own loop of speculation.
        rule: replaces the pair's own rule.
        deferral_temperature: replaces the pair's own deferral temperature.
        base_prompt: how the base model is asked, see `kad.generate`. It replaces the pair's own.
        dtype: of the weights: "float32", "bfloat16", "float16", or "auto" (as stored). The default is the pair's own.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto", which spreads the models over all devices (needs accelerate).
            By default the models go where the pair says, else to the first accelerator, else to the CPU.
        trust_remote_code: run code that comes with the models.
        engine_options: how llama.cpp runs its models: "context", "gpu_layers", "threads", "flash_attention" and
            "cache_type"; see `kad.engines.llama_cpp.model.LlamaCppOptions`. With vLLM, more arguments of `vllm.LLM`.

    Returns:
        A `KadForCausalLM` if Transformers runs all models, a `kad.engines.vllm.pair.VllmPair` if vLLM does, else a
        `kad.engines.pair.Pair`.

    Raises:
        UsageError: options that contradict each other, or an unknown engine, dtype or device.
        PairError: no such pair, or a model that cannot be loaded.
        MissingExtraError: an engine that is not installed.

    Example:
        >>> model = kad.load("my-pair", rule="primal:budget=0.8", device="cuda")
    """
    check_sources(pair, base, aligned, reference)
    if engine not in ENGINES:
        raise OptionError(f"Unknown `engine` {engine!r}. Choose from: {', '.join(ENGINES)}.")
    if engine == "vllm":
        named = {"base": base, "aligned": aligned, "reference": reference}
        refused = {"device": device, "base_prompt": base_prompt}
        options = {"trust_remote_code": trust_remote_code, "dtype": dtype, **(engine_options or {})}
        loaded: Loaded = _load_in_vllm(pair, named, rule, deferral_temperature, refused, options)
        return loaded
    options = _loading_options(dtype, device, trust_remote_code)
    from kad.method.rules import parse_rule
    from kad.pair.config import KadConfig
    from kad.pair.folder import read_config
    from kad.pair.sources import Source

    rule = None if rule is None else parse_rule(rule)
    composition: dict[str, Any] = {
        "rule": rule, "deferral_temperature": deferral_temperature, "base_prompt": base_prompt,
    }  # fmt: skip
    given = {key: value for key, value in composition.items() if value is not None}
    named = {"base": base, "aligned": aligned, "reference": reference}
    if base is not None and rule is not None and reference is None and rule.needs_reference:
        raise OptionError(f"Rule {rule} needs the reference model. Give one with `reference`.")
    if base is None:
        config = read_config(pair or "tiny")
    else:
        config = KadConfig(**{role: Source.parse(name).to_dict() for role, name in named.items() if name is not None})
    if base_prompt is not None:
        config.set_base_prompt(base_prompt)
    sources = config.model_sources()
    engines = engines_of(sources, engine)
    if set(engines.values()) != {"transformers"}:
        from kad.engines.pair import compose_models

        models = {
            role: load_one(source, engines[role], device=device, engine_options=engine_options, **options)
            for role, source in sources.items()
        }
        return compose_models(config, models, rule, deferral_temperature)
    if engine_options:
        raise OptionError("`engine_options` are for models that llama.cpp runs, and this pair has none.")
    from kad.engines.transformers.modeling import KadForCausalLM

    if base is not None and aligned is not None:
        model = KadForCausalLM.from_models(base, aligned, reference=reference, **given, **options)
    else:
        model = KadForCausalLM.from_pretrained(pair or "tiny", config=config, **given, **options)
    _place(model, device)
    return model


def _load_in_vllm(
    pair: str | None,
    named: Mapping[str, str | None],
    rule: str | Mapping[str, Any] | Rule | None,
    deferral_temperature: float | None,
    refused: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Any:
    from kad.engines.vllm.pair import VllmPair
    from kad.pair.sources import Source

    for name, value in refused.items():
        if value is not None:
            raise OptionError(f"`engine` vllm takes no `{name}`, but got {value!r}. Leave it out.")
    check_dtype(options["dtype"])
    return VllmPair(
        None if named["base"] is not None else pair or "tiny",
        {role: Source.parse(name) for role, name in named.items() if name is not None},
        rule=rule,
        deferral_temperature=deferral_temperature,
        options={name: value for name, value in options.items() if value is not None},
    )


def load_one(
    source: Source,
    engine: str,
    *,
    device: str | None = None,
    engine_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Model:
    """Load one model with its engine.

    Args:
        source: where the model is.
        engine: what `engine_for` says.
        device: "cpu" keeps a model of llama.cpp or MLX away from the GPU.
        engine_options: see `load`.
        **options: for models of Transformers, see `kad.pair.sources.MODEL_KWARGS`.

    Raises:
        PairError: the model cannot be loaded.
        OptionError: an unknown option of an engine.
    """
    if engine == "transformers":
        from kad.engines.transformers.model import TransformersModel

        return TransformersModel(source, **options)
    if engine == "mlx":
        from kad.engines.mlx.model import MlxModel

        return MlxModel(source, device=device)
    from kad.engines.llama_cpp.model import LlamaCppModel, LlamaCppOptions

    given: dict[str, Any] = {"gpu_layers": 0} if device == "cpu" else {}
    given |= engine_options or {}
    unknown = sorted(given.keys() - LlamaCppOptions.__dataclass_fields__.keys())
    if unknown:
        allowed = ", ".join(LlamaCppOptions.__dataclass_fields__)
        raise OptionError(f"Unknown option {', '.join(map(repr, unknown))} of llama.cpp. Allowed: {allowed}.")
    return LlamaCppModel(gguf_file(source), LlamaCppOptions(**given))


def gguf_file(source: Source) -> Path:
    """The GGUF file of a model, on this machine. A file of the hub is downloaded.

    Raises:
        PairError: there is no such file.
    """
    from pathlib import Path

    if source.gguf_path is not None:
        return source.gguf_path
    name = source.kwargs["gguf_file"]
    if source.is_local:
        raise PairError(f"No GGUF file {name} in {source.model}.")
    from kad.pair.model_files import download

    return Path(download(source, name))


def check_sources(pair: str | None, base: str | None, aligned: str | None, reference: str | None) -> None:
    """Either a pair, or base and aligned model.

    Raises:
        UsageError: both, or one of the two models without the other.
    """
    given = {"`base`": base, "`aligned`": aligned, "`reference`": reference}
    named = [option for option, value in given.items() if value is not None]
    if pair is not None and named:
        raise OptionError(f"Give `pair` or {' '.join(named)}, not both.")
    if named and (base is None or aligned is None):
        missing = "`base`" if base is None else "`aligned`"
        raise OptionError(
            f"{' '.join(named)} needs {missing} beside it: a composition has a base and an aligned model."
        )


def check_dtype(dtype: str | None, option: str = "dtype") -> None:
    """Raise UsageError unless `dtype` is None or one of `DTYPES`."""
    if dtype is not None and dtype not in DTYPES:
        raise OptionError(f"Unknown `{option}` {dtype!r}. Choose from: {', '.join(DTYPES)}.")


def first_device() -> str:
    """Where models go when nobody says: the first accelerator, else the CPU."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator is None else str(accelerator)


def is_usable(device: str) -> bool:
    """Whether tensors can be put on a device here."""
    try:
        _check_device(device)
    except UsageError:
        return False
    return True


def _loading_options(dtype: str | None, device: str | None, trust_remote_code: bool) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if dtype is not None:
        check_dtype(dtype)
        options["dtype"] = dtype
    if device is not None:
        _check_device(device)
        options["device_map"] = device if device in _SHARDING else None
    if trust_remote_code:
        options["trust_remote_code"] = True
    return options


def _check_device(device: str) -> None:
    if device in _SHARDING:
        return
    import torch

    if not re.fullmatch(r"(cpu|cuda|mps|xpu|hpu|npu)(:\d+)?", device):
        raise OptionError(f"Unknown `device` {device!r}. Choose from: cpu, cuda, cuda:1, mps, xpu, auto.")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"Device {device!r} cannot be used here: {first_line(error)}") from error


def _place(model: KadForCausalLM, device: str | None) -> None:
    """Move the models to `device`. Without one: to the first accelerator, unless the pair says where they go."""
    if device in _SHARDING:
        return
    chosen: Any = device
    if device is None:
        import torch

        placed = any(
            key in source.kwargs
            for source in model.config.model_sources().values()
            for key in ("device_map", "quantization_config")
        )
        if placed or not torch.accelerator.is_available():
            return
        chosen = first_device()
    try:
        model.to(chosen)
    except RuntimeError as error:
        raise OptionError(
            f"The models cannot be moved to {chosen}: {first_line(error)}. Try `device` cpu or auto."
        ) from error

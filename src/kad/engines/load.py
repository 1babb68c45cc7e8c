"""Load a pair: which engine runs each model, and on which device."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, cast, overload

from kad import hosts
from kad.errors import OptionError, PairError, UsageError, first_line
from kad.method import defaults
from kad.pair.sources import SERVER, Source, check_sources, is_pair

if TYPE_CHECKING:
    from torch import dtype as TorchDtype
    from torch.nn import Module

    from kad.engines.pair import Pair
    from kad.engines.protocols import Model
    from kad.engines.transformers.modeling import KadForCausalLM
    from kad.method.rules import Rule

    Loaded = KadForCausalLM | Pair
    Named = str | PathLike[str]
    AnyRule = str | Mapping[str, Any] | Rule

    class Loading(TypedDict, total=False):
        """What every way to call `load` takes."""

        rule: AnyRule | None
        deferral_temperature: float | None
        base_prompt: Any
        dtype: str | TorchDtype | None
        device: str | None
        trust_remote_code: bool


DTYPES = ("auto", "float32", "bfloat16", "float16")
_LARGEST_HEADER = 100_000_000
_SHARDING = ("auto", "balanced", "balanced_low_0", "sequential")
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu|hpu|npu)(:\d+)?")


# What Transformers runs for certain: the embedded pair, models that are loaded, and where it is asked for.
@overload
def load(
    pair: Literal["tiny"] | None = None,
    *,
    engine: Literal["auto", "transformers"] = ...,
    **options: Unpack[Loading],
) -> KadForCausalLM: ...
@overload
def load(
    *,
    base: Module,
    aligned: Named | Module,
    reference: Named | Module | None = ...,
    tokenizer: Any = ...,
    **options: Unpack[Loading],
) -> KadForCausalLM: ...
@overload
def load(
    *,
    base: Named,
    aligned: Module,
    reference: Named | Module | None = ...,
    tokenizer: Any = ...,
    **options: Unpack[Loading],
) -> KadForCausalLM: ...
@overload
def load(
    pair: Named | None = None,
    *,
    base: Named | None = ...,
    aligned: Named | None = ...,
    reference: Named | None = ...,
    engine: Literal["transformers"],
    **options: Unpack[Loading],
) -> KadForCausalLM: ...
@overload
def load(
    pair: Named | None = None,
    *,
    base: Named | None = ...,
    aligned: Named | None = ...,
    reference: Named | None = ...,
    base_tokenizer: str | None = ...,
    engine: str = ...,
    engine_options: Mapping[str, Any] | None = ...,
    **options: Unpack[Loading],
) -> Loaded: ...


def load(
    pair: Named | None = None,
    *,
    base: Any = None,
    aligned: Any = None,
    reference: Any = None,
    tokenizer: Any = None,
    base_tokenizer: str | None = None,
    engine: str = "auto",
    rule: AnyRule | None = None,
    deferral_temperature: float | None = None,
    base_prompt: Any = None,
    dtype: str | TorchDtype | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    engine_options: Mapping[str, Any] | None = None,
) -> Loaded:
    """Load a pair, ready for `kad.generate`, `kad.stream`, `kad.score` and `kad.trace`.

    Args:
        pair: a folder written by `kad pack`, a hub id, or "tiny", the embedded pair. "tiny" is the default.
        base: the base model, if there is no pair: a folder, a GGUF file, a hub id, the address of a server that runs it
            (docs/remote.md), or a model that Transformers or PEFT has loaded. A loaded model stays where it is, unless
            `device` is given. Each model may be a pair, too (docs/compose.md).
        aligned: the aligned model, if there is no pair.
        reference: the reference model, if there is no pair and the rule needs one.
        tokenizer: that of a loaded aligned model. By default it is found where the model was loaded from.
        base_tokenizer: the tokenizer of a base model on a server, a folder or a hub id.
        engine: "transformers", "llama_cpp" (GGUF files) or "mlx" (folders of MLX) for all models, or "auto": for each
            model the engine that its files are made for. "vllm" runs whole generations (`kad.generate` and
            `kad.stream`), many at once, with its own loop of speculation.
        rule: replaces the pair's own rule.
        deferral_temperature: replaces the pair's own deferral temperature.
        base_prompt: how the base model is asked, see `kad.generate`. It replaces the pair's own.
        dtype: of the weights: "float32", "bfloat16", "float16" (or PyTorch's own names), or "auto" (as stored). The
            default is the pair's own.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto", which spreads the models over all devices (needs accelerate).
            By default the models go where the pair says, else to the first accelerator, else to the CPU.
        trust_remote_code: run code that comes with the models.
        engine_options: how llama.cpp runs its models: "context", "gpu_layers", "threads", "flash_attention" and
            "cache_type"; see `kad.engines.llama_cpp.model.LlamaCppOptions`. With vLLM, more arguments of `vllm.LLM`.

    Returns:
        A `KadForCausalLM` if Transformers runs all models, else a `kad.engines.pair.Pair`.

    Raises:
        UsageError: options that contradict each other, or an unknown engine, dtype or device.
        PairError: no such pair, or a model that cannot be loaded.
        MissingExtraError: an engine that is not installed.

    Example:
        >>> model = kad.load("my-pair", rule="primal:budget=0.8", device="cuda")
    """
    place = located(base, base_tokenizer)
    if dtype is not None and not isinstance(dtype, str):
        dtype = str(dtype).removeprefix("torch.")
    named = {"base": base, "aligned": aligned, "reference": reference}
    loaded = {role for role, model in named.items() if hasattr(model, "forward")}
    check(pair, place, aligned, reference, engine=engine, rule=rule, dtype=dtype, device=device)
    options = _loading_options(dtype, device) if engine != "vllm" else {}
    if tokenizer is not None and "aligned" not in loaded:
        raise OptionError("`tokenizer` is that of a loaded aligned model; a model that is named brings its own.")
    if loaded:
        if isinstance(place, Source):
            raise OptionError("Beside a base model on a server, `aligned` is a folder or a hub id, and not loaded.")
        if engine_options:
            raise OptionError("`engine_options` are for models that llama.cpp runs, and these run in Transformers.")
        if dtype is not None and len(loaded) == sum(model is not None for model in named.values()):
            raise OptionError("`dtype` is for models that kad loads, and these are loaded. Use model.to(dtype).")
        return _of_loaded(named, loaded, tokenizer, rule, device, {
            "deferral_temperature": 1.0 if deferral_temperature is None else deferral_temperature,
            "base_prompt": base_prompt, "trust_remote_code": trust_remote_code, **options,
        })  # fmt: skip
    from kad.pair.folder import resolve

    config = resolve(
        pair, base=place, aligned=aligned, reference=reference, rule=rule, deferral_temperature=deferral_temperature,
        base_prompt=None if engine == "vllm" else base_prompt, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    if engine == "vllm":
        from kad.engines.vllm.model import VllmPair

        for name, value in {"device": device, "base_prompt": base_prompt}.items():
            if value is not None:
                raise OptionError(f"`engine` vllm takes no `{name}`, but got {value!r}. Leave it out.")
        arguments = {"trust_remote_code": trust_remote_code, "dtype": dtype, **(engine_options or {})}
        return VllmPair(config, {name: value for name, value in arguments.items() if value is not None})
    from kad.pair.parts import leaves_of, parts_of

    parts = parts_of(config)
    sources = leaves_of(parts)
    engines = engines_of(sources, engine)
    if engine_options and "llama_cpp" not in engines.values():
        raise OptionError("`engine_options` are for models that llama.cpp runs, and this pair has none.")
    from kad.engines.nested import assembled
    from kad.engines.pair import Pair

    leaves = load_models(sources, engines, device=device, engine_options=engine_options, **options)
    models = assembled(parts, leaves)
    if set(engines.values()) != {"transformers"}:
        config.vocab_size = None  # as these engines count rows
        return Pair(config, models)
    from kad.engines.transformers.modeling import KadForCausalLM

    return KadForCausalLM.of(Pair(config, models))


def _of_loaded(
    named: Mapping[str, Any],
    loaded: Collection[str],
    tokenizer: Any,
    rule: AnyRule | None,
    device: str | None,
    options: dict[str, Any],
) -> KadForCausalLM:
    """The pair of models of which some are loaded. The others go where `load` puts them."""
    from kad.engines.transformers.modeling import KadForCausalLM

    model = KadForCausalLM.from_models(
        named["base"], named["aligned"], reference=named["reference"], tokenizer=tokenizer,
        rule=defaults.RULE if rule is None else rule, **options,
    )  # fmt: skip
    models: Any = {role: part for role, part in model.pair.models.items() if device is not None or role not in loaded}
    _place(models, {role: part.source for role, part in models.items() if role not in loaded}, device)
    return model


def located(base: str | Source | None, base_tokenizer: str | None) -> str | Source | None:
    """The base model, with its tokenizer if it is on a server.

    Raises:
        OptionError: a model on a server without a tokenizer, or a tokenizer of another one.
    """
    if isinstance(base, str) and SERVER.match(base):
        return Source.on_server(base, base_tokenizer)
    if base_tokenizer is not None:
        raise OptionError("`base_tokenizer` is for a base model on a server, whose address is `base`. Leave it out.")
    return base


def check(
    pair: Named | None,
    base: Any,
    aligned: Any,
    reference: Any,
    *,
    engine: str = "auto",
    rule: str | Mapping[str, Any] | Rule | None = None,
    dtype: str | None = None,
    device: str | None = None,
) -> None:
    """What can be said about the arguments of `load` before torch or Transformers is imported, which takes seconds.

    Raises:
        UsageError: options that contradict each other, or an unknown engine, dtype or device.
        PairError: no such pair, folder or file.
        RuleError: a bad rule.
        MissingExtraError: the engine is not installed.
    """
    if engine not in ENGINES:
        raise OptionError(f"Unknown `engine` {engine!r}. Choose from: {', '.join(ENGINES)}.")
    check_sources(pair, base, aligned, reference, rule)
    if dtype is not None and dtype not in DTYPES:
        raise OptionError(f"Unknown `dtype` {dtype!r}. Choose from: {', '.join(DTYPES)}.")
    if device is not None and device not in _SHARDING and not _DEVICE.fullmatch(device):
        raise OptionError(f"Unknown `device` {device!r}. Choose from: cpu, cuda, cuda:1, mps, xpu, auto.")
    for model in (base, aligned, reference):
        if hasattr(model, "forward") and engine not in ("auto", "transformers"):
            raise OptionError(f"Loaded models run in Transformers, but got `engine` {engine}. Leave it out.")
        if model is not None and not hasattr(model, "forward") and engine != "vllm":
            source = Source.parse(model)
            if source.url is not None or not is_pair(Path(source.model)):
                engine_for(source, engine)
    check_installed(engine)


def load_models(
    sources: Mapping[str, Source],
    engines: Mapping[str, str],
    *,
    device: str | None = None,
    engine_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Model]:
    """Load single models by name, each by its engine, and what two names share once. See `load_one`."""
    ours = {role: source for role, source in sources.items() if engines[role] == "transformers"}
    models: dict[str, Model] = {}
    if ours:
        from kad.engines.transformers.loading import load_models as load_in_transformers

        models.update(load_in_transformers(ours, {}, options))
        _place(models, ours, device)
    for role, source in sources.items():
        if role in models:
            continue
        twin = next((other for other in models if sources[other] == source), None)
        if twin is None:
            models[role] = load_one(source, engines[role], device=device, engine_options=engine_options, **options)
        else:
            models[role] = models[twin]
    return {role: models[role] for role in sources}


def load_one(
    source: Source,
    engine: str,
    *,
    device: str | None = None,
    engine_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Model:
    """Load what stands in the place of one model: a model with its engine, or a pair.

    Args:
        source: where it is.
        engine: what `engine_for` says. For the models of a pair, what it is asked.
        device: where a model of Transformers goes; "cpu" keeps one of llama.cpp or MLX away from the GPU.
        engine_options: see `load`.
        **options: for models of Transformers, see `kad.pair.sources.MODEL_KWARGS`.

    Raises:
        PairError: the model cannot be loaded.
        OptionError: an unknown option of an engine.
    """
    from kad.engines.nested import assembled
    from kad.pair.parts import part_of

    part = part_of(source)
    if part.config is not None:
        leaves = part.leaves("aligned")
        engines = engines_of(leaves, engine)
        models = load_models(leaves, engines, device=device, engine_options=engine_options, **options)
        return cast("Model", assembled({"aligned": part}, models)["aligned"])
    engine = engine_for(source, engine)
    if engine == "transformers":
        return load_models({"aligned": source}, {"aligned": engine}, device=device, **options)["aligned"]
    if engine == "remote":
        from kad.engines.remote.model import RemoteModel

        return RemoteModel(source)
    if engine == "mlx":
        from kad.engines.mlx.model import MlxModel

        return MlxModel(source, device=device)
    from kad.engines.llama_cpp.model import LlamaCppModel, LlamaCppOptions

    values: dict[str, Any] = {"gpu_layers": 0} if device == "cpu" else {}
    values |= engine_options or {}
    unknown = sorted(values.keys() - LlamaCppOptions.__dataclass_fields__.keys())
    if unknown:
        allowed = ", ".join(LlamaCppOptions.__dataclass_fields__)
        raise OptionError(f"Unknown option {', '.join(map(repr, unknown))} of llama.cpp. Allowed: {allowed}.")
    return LlamaCppModel(gguf_file(source), LlamaCppOptions(**values))


def gguf_file(source: Source) -> Path:
    """The GGUF file of a model, on this machine. A file of the hub is downloaded.

    Raises:
        PairError: there is no such file.
    """
    if source.gguf_path is not None:
        return source.gguf_path
    name = source.kwargs["gguf_file"]
    if source.is_local:
        raise PairError(f"No GGUF file {name} in {source.model}.")
    from kad.pair.model_files import download

    return Path(download(source, name))


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


def _loading_options(dtype: str | None, device: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if dtype is not None:
        options["dtype"] = dtype
    if device is not None:
        _check_device(device)
        options["device_map"] = device if device in _SHARDING else None
    return options


def _check_device(device: str) -> None:
    if device in _SHARDING:
        return
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"Device {device!r} cannot be used here: {first_line(error)}") from error


def _place(models: Mapping[str, Any], sources: Mapping[str, Source], device: str | None) -> None:
    """Move models of Transformers to `device`. Without one: to the first accelerator, unless they say where they go."""
    if device in _SHARDING:
        return
    target: Any = device
    if device is None:
        import torch

        placed = any({"device_map", "quantization_config"} & source.kwargs.keys() for source in sources.values())
        if placed or not torch.accelerator.is_available():
            return
        target = first_device()
    try:
        for model in models.values():
            model.model.to(target)
    except RuntimeError as error:
        problem = f"The models cannot be moved to {target}: {first_line(error)}."
        raise OptionError(f"{problem} Try `device` cpu or auto.") from error


SCORING_ENGINES = ("auto", "transformers", "llama_cpp", "mlx")
"""What runs single models and gives their logits. "auto" follows the files."""
ENGINES = (*SCORING_ENGINES, "vllm")


def engine_for(source: Source, engine: str = "auto") -> str:
    """The engine that runs a model.

    A model on a server is the server's. With "auto", a GGUF file is llama.cpp's where llama-cpp-python is installed;
    else Transformers reads it, as full weights. A folder of MLX is MLX's.

    Raises:
        OptionError: an unknown engine, or one that does not run this model.
        MissingExtraError: the engine that was asked for is not installed.
    """
    if source.url is not None:
        return "remote"
    if engine not in SCORING_ENGINES:
        raise OptionError(f"Unknown `engine` {engine!r}. Choose from: {', '.join(SCORING_ENGINES)}.")
    is_gguf = "gguf_file" in source.kwargs
    if engine == "auto":
        if is_gguf:
            return "llama_cpp" if hosts.is_installed("llama_cpp") else "transformers"
        return "mlx" if is_mlx(source) else "transformers"
    if engine == "llama_cpp" and not is_gguf:
        raise OptionError(
            f"`engine` llama_cpp runs GGUF files, but {source.model} is none. Give the path of a .gguf file."
        )
    if engine == "mlx" and is_gguf:
        raise OptionError(f"`engine` mlx runs folders of MLX, but {source.kwargs['gguf_file']} is a GGUF file.")
    check_installed(engine)
    return engine


def check_installed(engine: str) -> None:
    """Raise MissingExtraError if an engine is not installed."""
    brought = {"llama_cpp": hosts.LLAMA_CPP, "mlx": hosts.MLX, "vllm": hosts.VLLM}
    if engine in brought:
        hosts.check_installed(brought[engine], {"mlx": "mlx_lm"}.get(engine, engine))


def engines_of(sources: Mapping[str, Source], engine: str = "auto") -> dict[str, str]:
    """The engine of each model by role; see `engine_for`. The role "pair" is a folder without weights."""
    engines = {role: engine_for(source, engine) for role, source in sources.items() if role != "pair"}
    for role, name in engines.items():
        if name == "remote" and role.rpartition(".")[2] != "base":
            raise PairError(f"Only the base model can be on a server, and the {role} model is named by one.")
    return engines


def is_mlx(source: Source) -> bool:
    """Whether MLX wrote this folder: its weights say so, or its configuration names MLX's quantization."""
    folder = Path(source.model) / source.kwargs.get("subfolder", "")
    if not folder.is_dir():
        return source.model.startswith("mlx-community/")
    with suppress(OSError, ValueError, AttributeError, TypeError):
        quantization = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization")
        if {"group_size", "bits"} <= quantization.keys():
            return True
    weights = sorted(folder.glob("model*.safetensors"))
    return bool(weights) and _written_by(weights[0]) == "mlx"


def _written_by(file: Path) -> str | None:
    """What a safetensors file says wrote it: "pt", "mlx", or nothing."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = stream.read(size) if size < _LARGEST_HEADER else b""
    try:
        return cast("str | None", json.loads(header).get("__metadata__", {}).get("format"))
    except (ValueError, AttributeError):
        return None

"""The models that the options name: checked before anything heavy is imported, loaded, put on their device."""

from __future__ import annotations

import json
import math
import os
import re
from logging import ERROR, getLogger
from typing import TYPE_CHECKING, Any

from kad.errors import KadError, PairError, UsageError

if TYPE_CHECKING:
    from kad.modeling import KadForCausalLM

DTYPES = ("auto", "float32", "bfloat16", "float16")
_SHARDING = ("auto", "balanced", "balanced_low_0", "sequential")


def load_model(
    pair: str | None = None,
    base: str | None = None,
    aligned: str | None = None,
    reference: str | None = None,
    rule: str | None = None,
    *,
    dtype: str | None = None,
    device: str | None = None,
    deferral_temperature: float | None = None,
    trust_remote_code: bool = False,
) -> KadForCausalLM:
    """The composed model that the options name: a pair, or models; the embedded pair when they name nothing.

    Raises:
        UsageError: options that contradict each other, an unknown dtype or device. Else as
        `KadForCausalLM.from_pretrained` and `from_models`.
    """
    check_sources(pair, base, aligned, reference)
    check_composition(rule, deferral_temperature)
    options = _loading_options(dtype, device, trust_remote_code)
    quiet_transformers()
    from kad.modeling import KadForCausalLM
    from kad.rules import parse_rule

    if base is not None and aligned is not None:
        if rule is not None and reference is None and parse_rule(rule).needs_reference:
            raise UsageError(f"Rule {parse_rule(rule)} needs the reference model. Give one with --reference.")
        composition: dict[str, Any] = {"rule": rule, "deferral_temperature": deferral_temperature}
        given = {key: value for key, value in composition.items() if value is not None}
        model = KadForCausalLM.from_models(base, aligned, reference=reference, **given, **options)
    else:
        model = KadForCausalLM.from_pretrained(
            pair or "tiny", rule=rule, deferral_temperature=deferral_temperature, **options
        )
    _place(model, device)
    return model


def load_tokenizer(model: KadForCausalLM) -> Any:
    """The tokenizer of a composed model: the pair's, else the aligned model's.

    Raises:
        PairError: neither has one.
    """
    from kad.loading import load_tokenizer as load
    from kad.sources import Source

    folder = model.config.folder
    if folder is not None and (folder / "tokenizer_config.json").is_file():
        return load(Source(str(folder)))
    try:
        return load(model.config.model_references()["aligned"])
    except PairError:
        if folder is None and model.config.name_or_path:
            return load(Source(model.config.name_or_path))
        raise


def check_sources(pair: str | None, base: str | None, aligned: str | None, reference: str | None) -> None:
    """Either a pair, or base and aligned model.

    Raises:
        UsageError: both, or one of the two models without the other.
    """
    given = {"--base": base, "--aligned": aligned, "--reference": reference}
    named = [option for option, value in given.items() if value is not None]
    if pair is not None and named:
        raise UsageError(f"Give --pair or {' '.join(named)}, not both.")
    if named and (base is None or aligned is None):
        missing = "--base" if base is None else "--aligned"
        raise UsageError(f"{' '.join(named)} needs {missing} beside it: a composition has a base and an aligned model.")


def quiet_transformers() -> None:
    """Silence Transformers' bars and remarks; errors still come as exceptions."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Its lines on every retry say no more than the exception at the end.
    getLogger("huggingface_hub").setLevel(ERROR)


def check_composition(rule: str | None, deferral_temperature: float | None) -> None:
    """Refuse bad values before models are loaded for them.

    Raises:
        RuleError, UsageError: naming the value and what is allowed.
    """
    if deferral_temperature is not None and not 0.0 < deferral_temperature < math.inf:
        raise UsageError(f"--deferral-temperature must be a positive number, but is {deferral_temperature}.")
    if rule is not None:
        from kad.rules import parse_rule

        parse_rule(rule)


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


def check_dtype(dtype: str | None, option: str = "--dtype") -> None:
    """Raise UsageError unless `dtype` is None or one of `DTYPES`."""
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"Unknown {option} {dtype!r}. Choose from: {', '.join(DTYPES)}.")


def _check_device(device: str) -> None:
    if device in _SHARDING:
        return
    import torch

    if not re.fullmatch(r"(cpu|cuda|mps|xpu|hpu|npu)(:\d+)?", device):
        raise UsageError(f"Unknown --device {device!r}. Choose from: cpu, cuda, cuda:1, mps, xpu, auto.")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"Device {device!r} cannot be used here: {reason}") from error


def _place(model: KadForCausalLM, device: str | None) -> None:
    """Move the models to the device asked for; without one, to the first accelerator, unless the pair places them."""
    if device in _SHARDING:
        return
    target: Any = device
    if device is None:
        import torch

        placed = any(
            key in reference.kwargs
            for reference in model.config.model_references().values()
            for key in ("device_map", "quantization_config")
        )
        if placed or not torch.accelerator.is_available():
            return
        target = torch.accelerator.current_accelerator(check_available=True)
    try:
        model.to(target)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise KadError(f"The models cannot be moved to {target}: {reason}. Try --device cpu or auto.") from error


def key_and_value(option: str, text: str) -> tuple[str, Any]:
    """The two sides of KEY=VALUE, the value read as JSON, or as text if it is none.

    Raises:
        UsageError: there is no key or no "=".
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"{option} takes KEY=VALUE, but got {text!r}.")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value

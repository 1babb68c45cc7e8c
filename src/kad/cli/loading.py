"""The models that the options name: checked before anything heavy is imported, loaded, put on their device."""

from __future__ import annotations

import os
import re
from logging import ERROR, getLogger
from typing import TYPE_CHECKING, Any

from kad.errors import KadError, PairError, UsageError

if TYPE_CHECKING:
    from kad.cli.options import ModelOptions
    from kad.modeling import KadForCausalLM

_SHARDING = ("auto", "balanced", "balanced_low_0", "sequential")


def load_model(options: ModelOptions) -> KadForCausalLM:
    """The composed model that the options name: a pair, or models; the embedded pair when they name nothing.

    Raises:
        UsageError: options that contradict each other, a device that is not there. Else as
        `KadForCausalLM.from_pretrained` and `from_models`.
    """
    options.check_sources()
    check_rule(options.rule)
    kwargs = _loading_options(options)
    quiet_transformers()
    from kad.modeling import KadForCausalLM
    from kad.rules import parse_rule

    composition: dict[str, Any] = {"rule": options.rule, "deferral_temperature": options.deferral_temperature}
    if options.base is not None:
        rule, reference = options.rule, options.reference
        if rule is not None and reference is None and parse_rule(rule).needs_reference:
            raise UsageError(f"Rule {parse_rule(rule)} needs the reference model. Give one with --reference.")
        given = {key: value for key, value in composition.items() if value is not None}
        model = KadForCausalLM.from_models(options.base, options.aligned, reference=reference, **given, **kwargs)
    else:
        model = KadForCausalLM.from_pretrained(options.pair or "tiny", **composition, **kwargs)
    _place(model, options.device)
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


def quiet_transformers() -> None:
    """Silence Transformers' bars and remarks; errors still come as exceptions."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Its lines on every retry say no more than the exception at the end.
    getLogger("huggingface_hub").setLevel(ERROR)


def check_rule(rule: str | None) -> None:
    """Refuse a bad rule before models are loaded for it.

    Raises:
        RuleError: naming the value and what is allowed.
    """
    if rule is not None:
        from kad.rules import parse_rule

        parse_rule(rule)


def _loading_options(options: ModelOptions) -> dict[str, Any]:
    kwargs: dict[str, Any] = {}
    if options.dtype is not None:
        kwargs["dtype"] = options.dtype
    if options.device is not None:
        _check_device(options.device)
        kwargs["device_map"] = options.device if options.device in _SHARDING else None
    if options.trust_remote_code:
        kwargs["trust_remote_code"] = True
    return kwargs


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

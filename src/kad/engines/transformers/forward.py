"""One model of a composition, run on its own device and with its own cache."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import nll_loss
from transformers import PreTrainedModel

from kad.engines.transformers.host import CACHE, cache_name
from kad.errors import UsageError


def run_part(
    model: PreTrainedModel,
    input_ids: Tensor,
    cache: Any = None,
    *,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    logits_to_keep: int | Tensor = 0,
    **others: Tensor,
) -> Tensor:
    """The logits of one model (batch, kept positions, vocab) on its own device. Fills `cache` if there is one.

    `others` are further tensors that its `forward` takes.
    """
    device = model.device
    known = _parameters(type(model).forward)
    options: dict[str, Any] = {"use_cache": cache is not None, "return_dict": True, **others}
    if cache is not None:
        options[cache_option(model)] = cache
    if attention_mask is not None:
        options["attention_mask"] = attention_mask.to(device)
    if position_ids is not None and "position_ids" in known:
        options["position_ids"] = position_ids.to(device)
    if "logits_to_keep" in known:
        options["logits_to_keep"] = logits_to_keep
    logits: Tensor = model(input_ids.to(device), **options).logits
    if "logits_to_keep" in known:
        return logits
    if isinstance(logits_to_keep, Tensor):
        return logits[:, logits_to_keep.to(device)]
    return logits[:, -logits_to_keep:] if logits_to_keep else logits


def own_inputs(
    ids: Tensor, mask: Tensor | None, cache: Any, logits_to_keep: int | Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What the base model still has to read of its own tokens: ids, attention mask and positions."""
    if not isinstance(logits_to_keep, int) or logits_to_keep < 1:
        raise UsageError(
            "With base_input_ids, say with logits_to_keep=n how many of the last positions are composed: before the "
            "answer the models have read different texts."
        )
    read = 0 if cache is None else int(cache.get_seq_length())
    positions = None if mask is None else (mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, read:]
    return ids[:, read:], mask, positions


def own_step(answer: Tensor, kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The base model's own tokens and attention mask with the answer so far (batch, new). Empty without a prompt of its
    own."""
    ids, mask = kwargs.get("base_input_ids"), kwargs.get("base_attention_mask")
    if ids is None:
        return {}
    inputs = {"base_input_ids": torch.cat((ids, answer), dim=-1)}
    if mask is not None:
        inputs["base_attention_mask"] = torch.cat((mask, mask.new_ones(answer.shape)), dim=-1)
    return inputs


def check_one_tokenizer(base_tokenizer: Any) -> None:
    """Refuse a base model with a tokenizer of its own.

    Raises:
        UsageError: there is such a tokenizer.
    """
    if base_tokenizer is not None:
        raise UsageError(
            "The base model has a tokenizer of its own, so the models' positions differ, and Transformers' generate "
            "cannot run the pair. Use kad.generate, kad.stream or kad.Conversation."
        )


def prompt_length(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """How many tokens of `input_ids` are the prompt, beside a prompt of the base model's own."""
    ids = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs"))
    if ids is None or ids.shape[0] != kwargs["base_input_ids"].shape[0]:
        raise UsageError("base_input_ids stands beside input_ids, with the same number of rows.")
    if kwargs.get("assistant_model") is not None or kwargs.get("prompt_lookup_num_tokens") is not None:
        raise UsageError(
            "Transformers' assisted decoding cuts all caches to one length, which base_input_ids does not allow. Use "
            "custom_generate=kad.speculative."
        )
    return int(ids.shape[1])


def cache_option(model: PreTrainedModel) -> str:
    """The name of the cache among the arguments of a model's forward."""
    return cache_name(_parameters(type(model).forward)) or CACHE


@lru_cache(maxsize=64)
def _parameters(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


def loss_of(log_pi: Tensor, labels: Tensor) -> Tensor:
    """The mean of -log pi of each label, predicted from the positions before it.

    Args:
        log_pi: (batch, positions, vocab), log-probabilities.
        labels: (batch, positions); -100 is left out.

    Raises:
        UsageError: other shapes.
    """
    if labels.shape != log_pi.shape[:-1]:
        raise UsageError(
            f"labels must have the shape of the kept positions, {tuple(log_pi.shape[:-1])}, but have "
            f"{tuple(labels.shape)}. Leave logits_to_keep at 0."
        )
    return nll_loss(log_pi[:, :-1].flatten(0, 1), labels[:, 1:].flatten().to(log_pi.device))

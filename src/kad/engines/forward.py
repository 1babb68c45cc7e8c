"""One model of a composition, run on its own device and with its own cache."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from kad.hosts.transformers import CACHE, cache_name


def run_part(
    model: PreTrainedModel,
    input_ids: Tensor,
    cache: Any = None,
    *,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    logits_to_keep: int | Tensor = 0,
) -> Tensor:
    """The logits of one model (batch, kept positions, vocab) on its own device. Fills `cache` if there is one."""
    device = model.device
    known = _parameters(type(model).forward)
    options: dict[str, Any] = {"use_cache": cache is not None, "return_dict": True}
    if cache is not None:
        options[cache_name(known) or CACHE] = cache
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


@lru_cache(maxsize=64)
def _parameters(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)

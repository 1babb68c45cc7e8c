"""One model of a composition, run on its own device and with its own cache."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel


def run_part(
    model: PreTrainedModel,
    input_ids: Tensor,
    cache: Any = None,
    *,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    logits_to_keep: int | Tensor = 0,
) -> Tensor:
    """One model's logits (batch, kept positions, vocab) on its own device, filling `cache` if there is one."""
    device = model.device
    known = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {"use_cache": cache is not None, "past_key_values": cache, "return_dict": True}
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

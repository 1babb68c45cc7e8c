"""Who decided each token of a composed answer: the base model or the aligned one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kad.composition import origin_shares

if TYPE_CHECKING:
    from kad.modeling import KadForCausalLM
    from kad.tiny.measure import Answer


@torch.inference_mode()
def base_shares(model: KadForCausalLM, answer: Answer) -> list[float]:
    """For each token of `answer`, the share of its composed probability that comes from the base model.

    One forward pass of each model over the finished text; the rule in force must be a cascade.
    """
    if not answer.token_ids:
        return []
    ids = torch.tensor([answer.prompt_ids + answer.token_ids])
    from_base, _ = origin_shares(model.rule, model.base(ids).logits, model.aligned(ids).logits)
    start = len(answer.prompt_ids) - 1
    chosen = from_base[0, start:-1].gather(-1, ids[0, start + 1 :, None])
    return [float(share) for share in chosen.squeeze(-1)]

"""Check the arguments of Transformers' `generate` and turn them into what the loop needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
)

from kad.engines.transformers.cache import KadCache
from kad.engines.transformers.host import CACHE
from kad.engines.transformers.modeling import KadForCausalLM
from kad.errors import UsageError
from kad.method.speculation.loop import StopRule
from kad.method.speculation.policies import Warp

# What `generate` passes to every decoding method. This one reads it elsewhere, or does not need it.
_KNOWN = frozenset(
    {
        "attention_mask", "position_ids", CACHE, "use_cache", "logits_to_keep", "cache_position",
        "output_attentions", "output_hidden_states", "return_dict",
        "base_input_ids", "base_attention_mask", "prompt_length",
    }
)  # fmt: skip


def check(
    model: Any,
    input_ids: Tensor,
    config: GenerationConfig,
    model_kwargs: dict[str, Any],
) -> None:
    """Refuse what the loop cannot do, before anything runs.

    Raises:
        UsageError: the loop cannot do this. The message says what to do instead.
    """
    if not isinstance(model, KadForCausalLM):
        raise UsageError(
            f"kad.speculative decodes a KadForCausalLM, but got {type(model).__name__}. For other models use "
            "Transformers' assistant_model."
        )
    if input_ids.shape[0] != 1 or config.num_beams > 1:
        raise UsageError(
            f"kad.speculative decodes one sequence at a time, but got {input_ids.shape[0]} (num_beams: "
            f"{config.num_beams}). "
            "Rows accept different numbers of drafts, which one cache per model cannot hold. Call generate once per "
            "prompt, decode the batch without speculation, or serve it with vLLM (docs/vllm.md)."
        )
    unknown = sorted(set(model_kwargs) - _KNOWN)
    if unknown:
        raise UsageError(f"kad.speculative takes no {', '.join(unknown)}. Leave it out.")
    if model_kwargs.get("use_cache") is False:
        raise UsageError("Speculation works on caches: leave use_cache=False out, or decode without speculation.")
    if config.output_attentions or config.output_hidden_states:
        raise UsageError("A composition has no attentions or hidden states of its own; ask model.base or .aligned.")


def own_prompt(model_kwargs: dict[str, Any]) -> list[int] | None:
    """The base model's own prompt without padding. None if it reads the same as the others."""
    ids, mask = model_kwargs.get("base_input_ids"), model_kwargs.get("base_attention_mask")
    if ids is None:
        return None
    found: list[int] = ids[0, 0 if mask is None else int(mask[0].to(torch.long).argmax()) :].tolist()
    return found


def left_padding(input_ids: Tensor, model_kwargs: dict[str, Any]) -> int:
    """The number of padding tokens before the prompt. The models never see them.

    Raises:
        UsageError: padding in another place, or position ids that are not counted from the first token.
    """
    mask, positions = model_kwargs.get("attention_mask"), model_kwargs.get("position_ids")
    padding = 0 if mask is None else int(mask[0].to(torch.long).argmax())
    if mask is not None and not bool(mask[0, padding:].all()):
        raise UsageError(
            "Padding must stand before the prompt (tokenizer padding_side='left'). If the prompt itself contains the "
            "padding token, pass attention_mask=torch.ones_like(input_ids)."
        )
    counted = torch.arange(input_ids.shape[1] - padding)
    if positions is not None and not torch.equal(positions[0, -len(counted) :].cpu(), counted[-positions.shape[1] :]):
        raise UsageError("kad.speculative counts positions from the first token; leave position_ids out.")
    return padding


def cache_for(model: KadForCausalLM, draft_model: str, cache: KadCache | None) -> KadCache:
    """The pair's cache, with a part for the reference model if it drafts.

    Raises:
        UsageError: there is no reference model to draft, or the cache was filled without it.
    """
    if draft_model == "reference" and model.reference is None:
        raise UsageError("draft_model='reference' needs a pair with a reference model; this one has none.")
    cache = model.make_cache() if cache is None else cache
    if draft_model == "reference" and cache.reference is None:
        if cache.get_seq_length() > 0:
            raise UsageError("This cache was filled without the reference model, which is to draft. Give no cache.")
        assert model.reference is not None
        cache.reference = DynamicCache(config=model.reference.config)
    return cache


def room_for_new_tokens(input_ids: Tensor, criteria: StoppingCriteriaList, config: GenerationConfig) -> Tensor:
    """(capacity,), the prompt and room up to the smallest maximal length."""
    limits = [c.max_length for c in criteria if isinstance(c, MaxLengthCriteria)]
    capacity = min(limits, default=config.max_length or 0)
    if capacity <= input_ids.shape[1]:
        raise UsageError(
            f"The prompt has {input_ids.shape[1]} tokens, and max_length is {capacity}: no room for a new one. "
            "Raise max_new_tokens."
        )
    ids = input_ids.new_zeros(capacity)
    ids[: input_ids.shape[1]] = input_ids[0]
    return ids


def warp_of(processors: LogitsProcessorList | None, ids: Tensor, padding: int) -> Warp | None:
    """The processors as a function of the length of the prefix. None if there are none.

    They see the ids that `generate` gave, with padding. They get a copy of the row, because some change it in place.
    """
    if not processors:
        return None

    def warp(length: int, log_probs: Tensor) -> Tensor:
        scores: Tensor = processors(ids[: padding + length].unsqueeze(0), log_probs.unsqueeze(0).clone())
        return scores[0]

    return warp


def stop_rule(criteria: StoppingCriteriaList, ids: Tensor, padding: int) -> StopRule:
    """All stopping criteria, checked after every single token, as in plain decoding.

    End-of-sequence tokens and the maximal length are looked up directly. The other criteria are called.
    """
    ends = {int(t) for c in criteria if type(c) is EosTokenCriteria for t in torch.as_tensor(c.eos_token_id).flatten()}
    called = StoppingCriteriaList(c for c in criteria if type(c) not in (EosTokenCriteria, MaxLengthCriteria))

    def stops(end: int, token: int) -> bool:
        return token in ends or (bool(called) and bool(called(ids[:end].unsqueeze(0), None).all()))

    def stop(committed: Tensor, new: list[int]) -> tuple[int, bool]:
        start = padding + committed.shape[0] - len(new)
        for count, token in enumerate(new, start=1):
            if stops(start + count, token):
                return count, True
        return len(new), start + len(new) >= ids.shape[0]

    return stop

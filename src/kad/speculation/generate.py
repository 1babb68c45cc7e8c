"""`speculative`: the loop as a Transformers `custom_generate` callable."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
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
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from kad.cache import KadCache
from kad.errors import UsageError
from kad.modeling import KadForCausalLM
from kad.speculation.loop import SpeculativeLoop, StopRule
from kad.speculation.policies import Records, Warp, choose_policy
from kad.speculation.randomness import TorchRandomness
from kad.speculation.scorers import CachedModel
from kad.speculation.statistics import SpeculationStatistics
from kad.speculation.windows import window_size
from kad.verification import Randomness, Verifier, verify_block, verify_tokens

VERIFIERS: dict[str, Verifier] = {"block": verify_block, "token": verify_tokens}
_DRAFTERS = ("aligned", "reference")
# What `generate` passes to every decoding method and this one reads itself or has no use for.
_KNOWN = frozenset(
    {
        "attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep", "cache_position",
        "output_attentions", "output_hidden_states", "return_dict",
    }
)  # fmt: skip


@dataclass
class SpeculativeOutput(GenerateDecoderOnlyOutput):
    """Transformers' output, and `statistics` of the run."""

    statistics: SpeculationStatistics | None = None


@torch.no_grad()
def speculative(
    model: KadForCausalLM,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    generation_config: GenerationConfig | None = None,
    synced_gpus: bool = False,
    streamer: BaseStreamer | None = None,
    *,
    num_draft_tokens: int | str = "auto",
    verification: str = "block",
    draft_model: str = "aligned",
    statistics: SpeculationStatistics | None = None,
    randomness: Randomness | None = None,
    tokenizer: Any = None,
    **model_kwargs: Any,
) -> Tensor | SpeculativeOutput:
    """Decode the composed model speculatively: `model.generate(**inputs, custom_generate=kad.speculative)`.

    The output follows pi exactly, under every rule, processor and stop rule; greedy decoding chooses the tokens that
    plain greedy decoding does. One prompt a call.

    Args:
        model: the composed model.
        input_ids: (1, positions).
        logits_processor, stopping_criteria, generation_config, synced_gpus, streamer, tokenizer, **model_kwargs: from
            `generate`.
        num_draft_tokens: drafts per window, or "auto": the number that is measured to be fastest, 0 (no speculation)
            included.
        verification: "block" (accepts at least as many drafts) or "token".
        draft_model: "aligned", or "reference" to draft from the reference model.
        statistics: an object to fill; with `return_dict_in_generate` it is in the output as well.
        randomness: the source of random decisions, torch's by default.

    Returns:
        (1, positions + new), or a `SpeculativeOutput` with `return_dict_in_generate`.

    Raises:
        UsageError: more than one prompt, a model that is not a composition, caches that cannot be rolled back, or
        options that do not exist.
    """
    if generation_config is None:
        raise UsageError("Call it through generate: model.generate(..., custom_generate=kad.speculative).")
    _check(model, input_ids, generation_config, model_kwargs, verification, draft_model)
    statistics = SpeculationStatistics() if statistics is None else statistics
    start = perf_counter()
    criteria = stopping_criteria or StoppingCriteriaList()
    padding = _left_padding(input_ids, model_kwargs)
    cache = _cache(model, draft_model, model_kwargs.get("past_key_values"))
    scorers = {
        role: CachedModel(model.parts[role], part, model.config.vocab_size, model.base.device)
        for role, part in cache.parts.items()
    }
    ids = _room_for_new_tokens(input_ids, criteria, generation_config)
    records = Records() if _wants_records(generation_config) else None
    loop = SpeculativeLoop(
        ids=ids[padding:],
        length=input_ids.shape[1] - padding,
        drafter=draft_model,
        scorers=dict(scorers),
        policy=choose_policy(
            model.rule,
            drafter=draft_model,
            greedy=not generation_config.do_sample,
            verifier=VERIFIERS[verification],
            randomness=randomness or TorchRandomness(),
            warp=_warp(logits_processor, ids, padding),
            deferral_temperature=model.composition.deferral_temperature,
            records=records,
        ),
        window=window_size(num_draft_tokens),
        stop=_stop_rule(criteria, ids, padding),
        statistics=statistics,
    )
    try:
        for tokens in loop.run():
            if streamer is not None and tokens.numel():
                streamer.put(tokens.cpu())
    finally:
        for scorer in scorers.values():
            scorer.release()
        statistics.seconds_total += perf_counter() - start
    if streamer is not None:
        streamer.end()
    sequences = ids[: padding + loop.length].unsqueeze(0)
    if generation_config.return_dict_in_generate or getattr(cache, "_is_user_defined", False):
        _bring_level(loop, scorers)
    if not generation_config.return_dict_in_generate:
        return sequences
    return _output(sequences, loop, records, cache, generation_config)


def _check(
    model: Any,
    input_ids: Tensor,
    config: GenerationConfig,
    model_kwargs: dict[str, Any],
    verification: str,
    draft_model: str,
) -> None:
    """Refuse what the loop cannot do, before anything runs."""
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
    for name, value, allowed in (
        ("verification", verification, tuple(VERIFIERS)),
        ("draft_model", draft_model, _DRAFTERS),
    ):
        if value not in allowed:
            raise UsageError(f"{name} must be one of {', '.join(allowed)}, but is {value!r}.")
    if draft_model == "reference" and model.reference is None:
        raise UsageError("draft_model='reference' needs a pair with a reference model; this one has none.")
    unknown = sorted(set(model_kwargs) - _KNOWN)
    if unknown:
        raise UsageError(f"kad.speculative takes no {', '.join(unknown)}.")
    if model_kwargs.get("use_cache") is False:
        raise UsageError("Speculation works on caches: leave use_cache=False out, or decode without speculation.")
    if config.output_attentions or config.output_hidden_states:
        raise UsageError("A composition has no attentions or hidden states of its own; ask model.base or .aligned.")


def _left_padding(input_ids: Tensor, model_kwargs: dict[str, Any]) -> int:
    """How many padding tokens precede the prompt; the models never see them.

    Raises:
        UsageError: padding elsewhere, or position ids that are not simply counted from the first token.
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


def _cache(model: KadForCausalLM, draft_model: str, cache: KadCache | None) -> KadCache:
    """The pair's cache, with a part for the reference model if it drafts."""
    cache = model.make_cache() if cache is None else cache
    if draft_model == "reference" and cache.reference is None:
        if cache.get_seq_length() > 0:
            raise UsageError("This cache was filled without the reference model, which is to draft; start anew.")
        assert model.reference is not None
        cache.reference = DynamicCache(config=model.reference.config)
    return cache


def _room_for_new_tokens(input_ids: Tensor, criteria: StoppingCriteriaList, config: GenerationConfig) -> Tensor:
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


def _warp(processors: LogitsProcessorList | None, ids: Tensor, padding: int) -> Warp | None:
    """The processors as a function of the prefix's length; None if there are none.

    They see the ids as `generate` gave them, padding included, and a copy of the row, which some change in place.
    """
    if not processors:
        return None

    def warp(length: int, log_probs: Tensor) -> Tensor:
        scores: Tensor = processors(ids[: padding + length].unsqueeze(0), log_probs.unsqueeze(0).clone())
        return scores[0]

    return warp


def _stop_rule(criteria: StoppingCriteriaList, ids: Tensor, padding: int) -> StopRule:
    """All criteria, asked after every single token as in plain decoding.

    End-of-sequence tokens and the maximal length are looked up directly; the others are called.
    """
    ends = {int(t) for c in criteria if type(c) is EosTokenCriteria for t in torch.as_tensor(c.eos_token_id).flatten()}
    called = StoppingCriteriaList(c for c in criteria if type(c) not in (EosTokenCriteria, MaxLengthCriteria))

    def stops(end: int, token: int) -> bool:
        return token in ends or (bool(called) and bool(called(ids[:end].unsqueeze(0), None).all()))

    def stop(committed: Tensor, new: int) -> tuple[int, bool]:
        start = padding + committed.shape[0] - new
        for count, token in enumerate(committed[-new:].tolist(), start=1):
            if stops(start + count, token):
                return count, True
        return new, start + new >= ids.shape[0]

    return stop


def _wants_records(config: GenerationConfig) -> bool:
    return bool(config.return_dict_in_generate and (config.output_scores or config.output_logits))


def _bring_level(loop: SpeculativeLoop, scorers: dict[str, CachedModel]) -> None:
    """Leave every cache as plain decoding would: all tokens processed but the last one."""
    end = loop.length - 1
    for scorer in scorers.values():
        scorer.rollback(end)
        if scorer.processed < end:
            scorer.advance(loop.ids[scorer.processed : end], 1)


def _output(
    sequences: Tensor,
    loop: SpeculativeLoop,
    records: Records | None,
    cache: KadCache,
    config: GenerationConfig,
) -> SpeculativeOutput:
    def rows(wanted: bool | None, name: str) -> tuple[Tensor, ...] | None:
        if records is None or not wanted:
            return None
        # Rows of tokens behind a stop rule's cut were judged, but their tokens not emitted.
        return tuple(getattr(records, name)[: loop.statistics.tokens])

    return SpeculativeOutput(
        sequences=sequences,
        scores=rows(config.output_scores, "scores"),
        logits=rows(config.output_logits, "logits"),
        past_key_values=cache,
        statistics=loop.statistics,
    )

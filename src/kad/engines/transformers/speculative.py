"""`speculative`: the loop as a Transformers `custom_generate` callable, and what it makes of `generate`'s arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
)

from kad.engines.scorers import OwnPrompt, Restricted
from kad.engines.transformers.host import CACHE, BaseStreamer, GenerateDecoderOnlyOutput
from kad.engines.transformers.modeling import KadCache, KadForCausalLM
from kad.errors import UsageError
from kad.method import defaults
from kad.method.scorer import Scorer
from kad.method.speculation.loop import SpeculativeLoop, StopRule
from kad.method.speculation.policies import Records, choose_policy, warp_of
from kad.method.speculation.randomness import TorchRandomness
from kad.method.speculation.statistics import SpeculationStatistics
from kad.method.verification import Randomness, Verifier, verify_block, verify_tokens
from kad.tokens.never_kept import NeverKept

# What `generate` passes to every decoding method. This one reads it elsewhere, or does not need it.
_KNOWN = frozenset({
    "attention_mask", "position_ids", CACHE, "use_cache", "logits_to_keep", "cache_position", "output_attentions",
    "output_hidden_states", "return_dict", "base_input_ids", "base_attention_mask", "prompt_length",
})  # fmt: skip
VERIFIERS: dict[str, Verifier] = {"block": verify_block, "token": verify_tokens}


@dataclass
class SpeculativeOutput(GenerateDecoderOnlyOutput):
    """The output of Transformers, with the `statistics` of the run."""

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
    num_draft_tokens: int | str | None = None,
    verification: str = "block",
    draft_model: str = "aligned",
    statistics: SpeculationStatistics | None = None,
    compile: bool | str = False,
    randomness: Randomness | None = None,
    tokenizer: Any = None,
    **model_kwargs: Any,
) -> Tensor | SpeculativeOutput:
    """Decode the composed model speculatively: `model.generate(**inputs, custom_generate=kad.speculative)`.

    The output follows pi exactly, under every rule, processor and stop rule. Greedy decoding chooses the same tokens as
    plain greedy decoding. It takes one prompt per call.

    Args:
        model: the composed model.
        input_ids: (1, positions).
        logits_processor: given by `generate`.
        stopping_criteria: given by `generate`.
        generation_config: given by `generate`.
        synced_gpus: given by `generate`.
        streamer: given by `generate`.
        num_draft_tokens: drafts per window; 0 is plain decoding; "auto" is the number that is measured to be fastest.
            By default "auto", and a fixed number for sampled texts: measured times differ between runs, so with "auto"
            a seed does not repeat a sampled text.
        verification: "block", which accepts at least as many drafts, or "token".
        draft_model: "aligned", or "reference" to draft from the reference model.
        statistics: an object to fill. With `return_dict_in_generate` it is also in the output.
        compile: capture the forward passes with torch.compile, on CUDA as CUDA graphs. True, or the name of one of its
            backends. The first call takes the time to compile; later calls find the captured passes, whatever the
            length of the prompt. The caches then belong to the captured passes: none is taken, and none returned.
        randomness: the source of random decisions. By default torch's.
        tokenizer: given by `generate`. Stop strings need it.
        **model_kwargs: given by `generate`.

    Returns:
        (1, positions + new), or a `SpeculativeOutput` with `return_dict_in_generate`.

    Raises:
        UsageError: more than one prompt, a model that is not a composition, a quantized cache, or options
            that do not exist.
    """
    if generation_config is None:
        raise UsageError("Call it through generate: model.generate(..., custom_generate=kad.speculative).")
    for name, value, allowed in (
        ("verification", verification, tuple(VERIFIERS)),
        ("draft_model", draft_model, ("aligned", "reference")),
    ):
        if value not in allowed:
            raise UsageError(f"{name} must be one of {', '.join(allowed)}, but is {value!r}.")
    _check(model, input_ids, generation_config, model_kwargs)
    check_processors(logits_processor or LogitsProcessorList(), input_ids, model.config.vocab_size)
    start = perf_counter()
    criteria = stopping_criteria or StoppingCriteriaList()
    padding = _left_padding(input_ids, model_kwargs)
    own, length = _own_prompt(model_kwargs), input_ids.shape[1] - padding
    room = model.pair.room(max(length, len(own or ())))
    ids = _room_for_new_tokens(input_ids, criteria, generation_config, room)
    cache = _cache_for(model, draft_model, model_kwargs.get(CACHE))
    sampled = bool(generation_config.do_sample)
    drafts = defaults.draft_tokens(sampled) if num_draft_tokens is None else num_draft_tokens
    window = model.pair.window(drafts, draft_model, model.composition, sampled=sampled, few=bool(compile))
    if compile and cache.given:
        raise UsageError(f"compile=True makes caches of its own: leave {CACHE} out, or decode without compile.")
    scorers: dict[str, Scorer] = {}
    if compile:
        capacity = len(ids) + len(own or ())
        scorers |= model.pair.captured_scorers(cache.parts, draft_model, window.sizes, capacity, compile)
    else:
        scorers |= model.scorers_on(cache)
    if own is not None:
        scorers["base"] = OwnPrompt(scorers["base"], own, length)
    if model.config.foreign_ids:
        never_kept = NeverKept(tuple(model.config.foreign_ids))
        temperature = model.composition.deferral_temperature
        scorers["base"] = Restricted(scorers["base"], never_kept, length, temperature)
    wants_rows = generation_config.output_scores or generation_config.output_logits
    records = Records() if generation_config.return_dict_in_generate and wants_rows else None
    loop = SpeculativeLoop(
        ids=ids[padding:],
        length=length,
        drafter=draft_model,
        scorers=scorers,
        policy=choose_policy(
            composition=model.composition,
            drafter=draft_model,
            greedy=not sampled,
            verifier=VERIFIERS[verification],
            randomness=randomness or TorchRandomness(),
            warp=warp_of(logits_processor, ids, padding),
            records=records,
        ),
        window=window,
        stop=stop_rule(criteria, ids, padding),
        statistics=SpeculationStatistics() if statistics is None else statistics,
    )
    try:
        for emitted in loop.run():
            if streamer is not None:
                streamer.put(torch.tensor([item.token for item in emitted]))
        if streamer is not None:
            streamer.end()
        if not compile and (generation_config.return_dict_in_generate or cache.given):
            loop.bring_level()
    finally:
        for scorer in scorers.values():
            scorer.release()
        loop.statistics.seconds_total += perf_counter() - start
    sequences = ids[: padding + loop.length].unsqueeze(0)
    if not generation_config.return_dict_in_generate:
        return sequences
    new = sequences.shape[1] - input_ids.shape[1]  # rows of tokens that a stop rule cut off are left out
    return SpeculativeOutput(
        sequences=sequences,
        scores=tuple(records.scores[:new]) if records and generation_config.output_scores else None,
        logits=tuple(records.logits[:new]) if records and generation_config.output_logits else None,
        statistics=loop.statistics,
        **{CACHE: None if compile else cache},
    )


def _check(model: Any, input_ids: Tensor, config: GenerationConfig, model_kwargs: dict[str, Any]) -> None:
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
    unknown = sorted(set(model_kwargs) - _KNOWN)
    if unknown:
        raise UsageError(f"kad.speculative takes no {', '.join(unknown)}. Leave it out.")
    if model_kwargs.get("use_cache") is False:
        raise UsageError("Speculation works on caches: leave use_cache=False out, or decode without speculation.")
    if config.output_attentions or config.output_hidden_states:
        raise UsageError("A composition has no attentions or hidden states of its own; ask model.base or .aligned.")


def check_processors(processors: Sequence[Any], ids: Tensor, vocab_size: int) -> None:
    """Refuse processors that keep a state: the loop asks them about drafts, too, and goes back.

    Each is asked about the prompt, about a longer text, and about the prompt again.
    """
    row = torch.linspace(-1.0, 0.0, vocab_size, device=ids.device).log_softmax(dim=-1).unsqueeze(0)
    longer = torch.cat((ids, ids[:, -1:]), dim=-1)
    for processor in processors:
        first, _, again = (processor(text, row.clone()).clone() for text in (ids, longer, ids))
        if not torch.equal(first, again):
            raise UsageError(
                f"Speculation needs scores that depend on the text alone, but {type(processor).__name__} keeps a "
                "state: asked twice about one text, it answers differently. Decode without drafts."
            )


def _own_prompt(model_kwargs: dict[str, Any]) -> list[int] | None:
    """The base model's own prompt without padding. None if it reads the same as the others."""
    ids, mask = model_kwargs.get("base_input_ids"), model_kwargs.get("base_attention_mask")
    if ids is None:
        return None
    return cast("list[int]", ids[0, _padding(mask) :].tolist())


def _padding(mask: Tensor | None) -> int:
    """The number of zeros at the left of an attention mask (1, positions)."""
    return 0 if mask is None else int(mask[0].to(torch.long).argmax())


def _left_padding(input_ids: Tensor, model_kwargs: dict[str, Any]) -> int:
    """The number of padding tokens before the prompt. The models never see them."""
    mask, positions = model_kwargs.get("attention_mask"), model_kwargs.get("position_ids")
    padding = _padding(mask)
    if mask is not None and not bool(mask[0, padding:].all()):
        raise UsageError(
            "Padding must stand before the prompt (tokenizer padding_side='left'). If the prompt itself contains the "
            "padding token, pass attention_mask=torch.ones_like(input_ids)."
        )
    counted = torch.arange(input_ids.shape[1] - padding)
    if positions is not None and not torch.equal(positions[0, -len(counted) :].cpu(), counted[-positions.shape[1] :]):
        raise UsageError("kad.speculative counts positions from the first token; leave position_ids out.")
    return padding


def _cache_for(model: KadForCausalLM, draft_model: str, cache: KadCache | None) -> KadCache:
    """The pair's cache, with a part for the reference model if it drafts."""
    if draft_model == "reference" and model.reference is None:
        raise UsageError("draft_model='reference' needs a pair with a reference model; this one has none.")
    cache = model.make_cache() if cache is None else cache
    if draft_model == "reference" and cache.reference is None:
        if cache.get_seq_length() > 0:
            raise UsageError("This cache was filled without the reference model, which is to draft. Give no cache.")
        cache.reference = model.new_cache_of("reference")
    return cache


def _room_for_new_tokens(
    input_ids: Tensor, criteria: StoppingCriteriaList, config: GenerationConfig, room: int | None
) -> Tensor:
    """(capacity,), the prompt and room up to the smallest maximal length, or to the end of the models' context."""
    limits = [c.max_length for c in criteria if isinstance(c, MaxLengthCriteria)]
    capacity = min(limits, default=config.max_length or 0)
    if capacity <= input_ids.shape[1]:
        raise UsageError(
            f"The prompt has {input_ids.shape[1]} tokens, and max_length is {capacity}: no room for a new one. "
            "Raise max_new_tokens."
        )
    capacity = capacity if room is None else min(capacity, input_ids.shape[1] + room)
    ids = input_ids.new_zeros(capacity)
    ids[: input_ids.shape[1]] = input_ids[0]
    return ids


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

"""`speculative`: the loop as a Transformers `custom_generate` callable."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from kad.engines.own_prompt import OwnPrompt
from kad.engines.restricted import Restricted
from kad.engines.transformers import speculative_inputs as inputs
from kad.engines.transformers.cache import KadCache
from kad.engines.transformers.cached_model import CachedModel
from kad.engines.transformers.host import CACHE, BaseStreamer, GenerateDecoderOnlyOutput
from kad.engines.transformers.modeling import KadForCausalLM
from kad.errors import UsageError
from kad.method.scorer import Scorer
from kad.method.speculation.loop import SpeculativeLoop
from kad.method.speculation.policies import Records, choose_policy
from kad.method.speculation.randomness import TorchRandomness
from kad.method.speculation.statistics import SpeculationStatistics
from kad.method.speculation.windows import default_draft_tokens, window_size
from kad.method.verification import Randomness, Verifier, verify_block, verify_tokens
from kad.tokens.never_kept import NeverKept

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
        UsageError: more than one prompt, a model that is not a composition, caches that cannot be rolled back, or
            options that do not exist.
    """
    if generation_config is None:
        raise UsageError("Call it through generate: model.generate(..., custom_generate=kad.speculative).")
    for name, value, allowed in (
        ("verification", verification, tuple(VERIFIERS)),
        ("draft_model", draft_model, ("aligned", "reference")),
    ):
        if value not in allowed:
            raise UsageError(f"{name} must be one of {', '.join(allowed)}, but is {value!r}.")
    inputs.check(model, input_ids, generation_config, model_kwargs)
    start = perf_counter()
    criteria = stopping_criteria or StoppingCriteriaList()
    padding = inputs.left_padding(input_ids, model_kwargs)
    ids = inputs.room_for_new_tokens(input_ids, criteria, generation_config)
    cache = inputs.cache_for(model, draft_model, model_kwargs.get(CACHE))
    own = inputs.own_prompt(model_kwargs)
    asked = default_draft_tokens(bool(generation_config.do_sample)) if num_draft_tokens is None else num_draft_tokens
    window = window_size(asked, few=bool(compile))
    if compile and cache.given:
        raise UsageError(f"compile=True makes caches of its own: leave {CACHE} out, or decode without compile.")
    scorers = (
        model.captured_scorers(cache.parts, draft_model, window.sizes, len(ids) + len(own or ()), compile)
        if compile
        else _scorers(model, cache)
    )
    if own is not None:
        scorers["base"] = OwnPrompt(scorers["base"], own, input_ids.shape[1] - padding)
    if model.config.foreign_ids:
        never_kept, temperature = NeverKept(tuple(model.config.foreign_ids)), model.composition.deferral_temperature
        scorers["base"] = Restricted(scorers["base"], never_kept, input_ids.shape[1] - padding, temperature)
    records = Records() if _wants_records(generation_config) else None
    loop = SpeculativeLoop(
        ids=ids[padding:],
        length=input_ids.shape[1] - padding,
        drafter=draft_model,
        scorers=scorers,
        policy=choose_policy(
            composition=model.composition,
            drafter=draft_model,
            greedy=not generation_config.do_sample,
            verifier=VERIFIERS[verification],
            randomness=randomness or TorchRandomness(),
            warp=inputs.warp_of(logits_processor, ids, padding),
            records=records,
        ),
        window=window,
        stop=inputs.stop_rule(criteria, ids, padding),
        statistics=SpeculationStatistics() if statistics is None else statistics,
    )
    try:
        _run(loop, streamer)
        if not compile and (generation_config.return_dict_in_generate or cache.given):
            loop.bring_level()
    finally:
        for scorer in scorers.values():
            scorer.release()
        loop.statistics.seconds_total += perf_counter() - start
    sequences = ids[: padding + loop.length].unsqueeze(0)
    if not generation_config.return_dict_in_generate:
        return sequences
    new = sequences.shape[1] - input_ids.shape[1]
    return SpeculativeOutput(
        sequences=sequences,
        scores=_rows(records.scores, new) if records and generation_config.output_scores else None,
        logits=_rows(records.logits, new) if records and generation_config.output_logits else None,
        statistics=loop.statistics,
        **{CACHE: None if compile else cache},
    )


def _scorers(model: KadForCausalLM, cache: KadCache) -> dict[str, Scorer]:
    return {
        role: CachedModel(model.parts[role], part, model.config.vocab_size, model.base.device)
        for role, part in cache.parts.items()
    }


def _run(loop: SpeculativeLoop, streamer: BaseStreamer | None) -> None:
    for emitted in loop.run():
        if streamer is not None:
            streamer.put(torch.tensor([item.token for item in emitted]))
    if streamer is not None:
        streamer.end()


def _wants_records(config: GenerationConfig) -> bool:
    return bool(config.return_dict_in_generate and (config.output_scores or config.output_logits))


def _rows(rows: list[Tensor], count: int) -> tuple[Tensor, ...]:
    """The rows of the emitted tokens. Rows of tokens that a stop rule cut off are left out."""
    return tuple(rows[:count])

"""Many prompts at once, with random numbers of its own for each answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kad.engines.alone import Alone
from kad.engines.protocols import ComposedModel, Generates, Model
from kad.engines.transformers.lockstep import Lockstep
from kad.text.answer import Answer
from kad.text.contexts import Context
from kad.text.drafting import Drafting
from kad.text.prompts import decode
from kad.text.sampling import Sampling, end_tokens, processors
from kad.text.streaming import Stream
from kad.text.whole import answer_all, choose_drafts

if TYPE_CHECKING:
    from transformers import GenerationConfig


class Noise:
    """Standard Gumbel noise, one generator a row: argmax_v (log pi_v + g_v) is distributed as pi.

    Row i draws its g from its own generator. So its text depends only on its seed and its prompt, and not on the other
    rows of the batch or on earlier batches. This is why an interrupted run can continue.

    The noise is float64. In float32 the tail of g would end at 16.6, and a token rarer than 2^-24 could never win.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def add(self, scores: Tensor) -> Tensor:
        """(batch, vocab) log-probabilities or scores -> the same with noise, float64."""
        rows = [
            torch.rand(scores.shape[-1], generator=generator, dtype=torch.float64, device=scores.device)
            for generator in self._generators
        ]
        # rand is in [0, 1). A zero, once in 2^53, gives -inf: this token cannot win this time.
        return scores.double() - torch.log(-torch.log(torch.stack(rows)))


def seeds_from(seed: int, count: int) -> list[int]:
    """As many seeds as there are prompts, drawn from one."""
    generator = torch.Generator().manual_seed(seed)
    seeds: list[int] = torch.randint(2**31, (count,), generator=generator).tolist()
    return seeds


def generate_all(
    model: PreTrainedModel | ComposedModel | Generates | Model,
    tokenizer: Any,
    prompts: Sequence[Context | Sequence[int]],
    *,
    sampling: Sampling | None = None,
    seeds: Sequence[int] | None = None,
    ends: Sequence[int] | None = None,
    batch_size: int = 16,
    num_draft_tokens: int | str | None = None,
    drafter: str = "aligned",
    progress: Callable[[int], object] = lambda done: None,
) -> list[Answer]:
    """The answers to many prompts.

    vLLM takes them all at once. The Transformers engine decodes them in batches. With drafts, and on other engines, one
    answer follows the other: texts that accept different numbers of drafts cannot share a cache.

    Args:
        model: a pair of any engine, or one causal language model of any engine.
        tokenizer: the tokenizer of the answers.
        prompts: token ids, see `kad.text.prompts.encode`; or what each model of a pair reads, see `context_of`, all
            with the same stops.
        sampling: how to draw tokens. It overrides the model's own settings.
        seeds: one for each prompt. Sampled answers need them.
        ends: the tokens that end a text. They replace those of the model's settings.
        batch_size: how many prompts to decode at once; vLLM decides that itself.
        num_draft_tokens: how many tokens to draft at a time. None is plain decoding, or what vLLM was started with.
        drafter: the role of the drafting model.
        progress: called with the number of answers after each batch.

    Raises:
        UsageError: settings that cannot be followed.
    """
    config = (sampling or Sampling()).apply(model.generation_config, None)
    if ends is not None:
        config.eos_token_id = list(ends)
    if config.do_sample and seeds is None:
        raise ValueError("Sampled answers need one seed for each prompt.")
    if not config.do_sample:
        seeds = None
    if isinstance(model, Generates):
        drafts = choose_drafts(model, num_draft_tokens)
        return answer_all(model, tokenizer, prompts, config, seeds, drafts=drafts, drafter=drafter, progress=progress)
    # The positions of models with two tokenizers differ, so no batch holds them.
    two_tokenizers = getattr(model, "base_tokenizer", None) is not None
    one_model = not hasattr(model, "composition")
    if num_draft_tokens or two_tokenizers or not (one_model or isinstance(model, PreTrainedModel)):
        how = sampling or Sampling()
        seeded = [how] * len(prompts) if seeds is None else [replace(how, seed=seed) for seed in seeds]
        return [
            _alone(model, prompt, one, num_draft_tokens or 0, drafter, progress)
            for prompt, one in zip(prompts, seeded, strict=True)
        ]
    answers: list[Answer] = []
    batch_size = batch_size if isinstance(model, PreTrainedModel) else 1
    for start in range(0, len(prompts), batch_size):
        some = [Context.of(prompt) for prompt in prompts[start : start + batch_size]]
        seed = None if seeds is None else list(seeds[start : start + batch_size])
        answers += _decode_together(model, tokenizer, some, config, seed)
        progress(len(some))
    return answers


def _alone(
    model: Any,
    prompt: Context | Sequence[int],
    sampling: Sampling,
    draft_tokens: int | str,
    drafter: str,
    progress: Callable[[int], object],
) -> Answer:
    _now(model.device)
    stream = Stream(model, prompt, model.composition, sampling, draft_tokens, drafter=drafter, origins=False)
    answer = stream.finish()
    progress(1)
    return answer


@torch.no_grad()
def _decode_together(
    model: PreTrainedModel | Model,
    tokenizer: Any,
    prompts: list[Context],
    config: GenerationConfig,
    seeds: list[int] | None,
) -> list[Answer]:
    ends = end_tokens(config)
    rows = _rows(model, tokenizer, prompts, pad=_pad_token(tokenizer, config, ends))
    device = rows.ids.device
    started = _now(device)
    noise = None if seeds is None else Noise(seeds, device)
    process = processors(config, rows.ids.shape[1], device)
    stopping = torch.tensor(ends or [-1], device=device)
    unfinished = torch.ones(len(prompts), dtype=torch.bool, device=device)
    stopped: dict[int, int] = {}
    for _ in range(min(int(config.max_new_tokens), rows.room)):
        scores = process(rows.ids, rows.next_logits())
        tokens = (scores if noise is None else noise.add(scores)).argmax(dim=-1)
        rows.append(torch.where(unfinished, tokens, rows.pad))
        unfinished &= ~torch.isin(tokens, stopping)
        for index in _saying(config.stop_strings, tokenizer, rows, unfinished):
            unfinished[index], stopped[index] = False, rows.ids.shape[1] - rows.width
        if not bool(unfinished.any()):
            break
    share = (_now(device) - started) / len(prompts)
    written = rows.ids[:, rows.width :].tolist()
    found = []
    for index, (prompt, row) in enumerate(zip(prompts, written, strict=True)):
        end = stopped.get(index) or next((place + 1 for place, token in enumerate(row) if token in ends), None)
        found.append(
            Answer(
                prompt_ids=prompt.ids,
                context=prompt,
                token_ids=row[:end],
                text=decode(tokenizer, row[:end]),
                finish_reason="length" if end is None else "stop_string" if index in stopped else "stop",
                seconds=share,
                first_token=share,
                drafting=Drafting(0, "many prompts at once"),
                temperature=(config.temperature or 1.0) if config.do_sample else None,
                seed=None if seeds is None else seeds[index],
            )
        )
    return found


def _saying(stops: Sequence[str] | None, tokenizer: Any, rows: Lockstep | Alone, unfinished: Tensor) -> list[int]:
    """The unfinished rows whose last tokens contain one of these texts."""
    if not stops:
        return []
    longest = max(map(len, stops))  # a token that adds no character to a text is rare
    first = max(rows.width, rows.ids.shape[1] - longest - 8)
    there = unfinished.nonzero().flatten().tolist()
    texts = {index: decode(tokenizer, rows.ids[index, first:].tolist(), special=True) for index in there}
    return [index for index, text in texts.items() if any(stop in text for stop in stops)]


def _rows(model: PreTrainedModel | Model, tokenizer: Any, prompts: list[Context], pad: int) -> Lockstep | Alone:
    """The batch. A pair's base model reads prompts of its own where there are some."""
    ids = [prompt.ids for prompt in prompts]
    if not isinstance(model, PreTrainedModel):
        return Alone(model, ids[0], pad)
    composition: Any = getattr(model, "composition", None)
    if composition is None or all(prompt.base_ids is None for prompt in prompts):
        return Lockstep(model, ids, pad)
    own = [prompt.ids if prompt.base_ids is None else prompt.base_ids for prompt in prompts]
    never_kept = prompts[0].never_kept(cast("Any", model), composition)
    after = None if never_kept is None else partial(never_kept.after, vocab_size=model.config.vocab_size)
    return Lockstep(model, ids, pad, own, after)


def _pad_token(tokenizer: Any, config: GenerationConfig, ends: Sequence[int]) -> int:
    candidates = (tokenizer.pad_token_id, config.pad_token_id, *ends, 0)
    return next(int(token) for token in candidates if token is not None)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

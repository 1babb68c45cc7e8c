"""Many prompts at once, with random numbers of its own for each answer."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from kad.engines.pair import Pair, pair_of
from kad.engines.protocols import Batch
from kad.method.composition import compose, in_order, raise_if_bad
from kad.method.distribution import Rows, lowered, refuse
from kad.text.answer import Answer, answers_at_once
from kad.text.contexts import Context
from kad.text.drafting import Drafting
from kad.text.ends import Ending
from kad.text.masks import Mask
from kad.text.sampling import Sampling, end_tokens, processors
from kad.text.streaming import Stream
from kad.text.whole import answer_all, choose_drafts

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from kad.engines.load import Loaded


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
    model: Loaded,
    tokenizer: Any,
    prompts: Sequence[Context | Sequence[int]],
    *,
    sampling: Sampling | None = None,
    seeds: Sequence[int] | None = None,
    ends: Sequence[int] | None = None,
    batch_size: int = 16,
    num_draft_tokens: int | str | None = None,
    drafter: str = "aligned",
    masks: Callable[[Context], Sequence[Mask]] | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> list[Answer]:
    """The answers to many prompts.

    vLLM takes them all at once. The Transformers engine decodes them in batches. With drafts, and on other engines, one
    answer follows the other: texts that accept different numbers of drafts cannot share a cache. A server that runs the
    base model is asked for a whole batch at the same time, by one thread for each answer.

    Args:
        model: a pair of any engine. One model is a pair, too: `Pair.one`.
        tokenizer: the tokenizer of the answers.
        prompts: token ids, see `kad.text.prompts.encode`; or what each model of a pair reads, see `Asking.context`, all
            with the same stops and `ends`.
        sampling: how to draw tokens. It overrides the model's own settings.
        seeds: one for each prompt. Sampled answers need them.
        ends: the tokens that end a text. They replace those of the model's settings.
        batch_size: how many prompts to decode at once; vLLM decides that itself.
        num_draft_tokens: how many tokens to draft at a time. None is plain decoding, or what vLLM was started with.
        drafter: the role of the drafting model.
        masks: what acts on log pi, for each context; see `kad.text.masks`. With it, one answer follows the other.
        progress: called with the number of answers after each batch.

    Raises:
        UsageError: settings that cannot be followed.
    """
    pair = pair_of(model)
    sampling = sampling or Sampling()
    lengths = [len(prompt.ids if isinstance(prompt, Context) else prompt) for prompt in prompts]
    config = sampling.apply(pair.generation_config, None, max(lengths, default=0))
    if ends is not None:
        config.eos_token_id = list(ends)
    if config.do_sample and seeds is None:
        raise ValueError("Sampled answers need one seed for each prompt.")
    if not config.do_sample:
        seeds = None
    if pair.whole is not None:
        drafts = choose_drafts(pair, num_draft_tokens)
        return answer_all(
            pair, tokenizer, prompts, config, seeds,
            sampling=sampling, drafts=drafts, drafter=drafter, progress=progress,
        )  # fmt: skip
    own: Sequence[int | None] = [None] * len(prompts) if seeds is None else seeds
    waiting = [(Context.of(prompt, pair), seed) for prompt, seed in zip(prompts, own, strict=True)]
    answers: list[Answer] = []
    one_by_one = bool(num_draft_tokens) or masks is not None or sampling.counts_the_prompt(pair.generation_config)
    while waiting:
        some = waiting[:batch_size]
        contexts, pad = [context for context, _ in some], _pad_token(tokenizer, config)
        batches = None if one_by_one else _in_step(pair, contexts, pad)
        if batches is not None:
            drawn = [seed for _, seed in some if seed is not None] or None
            answers += _decode_in_step(pair, tokenizer, contexts, batches, config, drawn)
        elif len(some) > 1 and not pair.gives_lists:
            batch_size = 1
            continue
        else:
            streams = [
                Stream(
                    pair, context, pair.composition, replace(sampling, seed=seed), num_draft_tokens or 0,
                    drafter=drafter, origins=False, ends=ends, masks=masks(context) if masks else (),
                )
                for context, seed in some
            ]  # fmt: skip
            answers += _finished(streams)
        waiting = waiting[len(some) :]
        progress(len(some))
    return answers


def _finished(streams: Sequence[Stream]) -> list[Answer]:
    """The answers of streams that run at the same time. Each has its share of the time."""
    if len(streams) == 1:
        return [streams[0].finish()]
    started = time.perf_counter()
    with ThreadPoolExecutor(len(streams), "kad-answers") as threads:
        answers = list(threads.map(Stream.finish, streams))
    share = (time.perf_counter() - started) / len(answers)
    return [replace(answer, seconds=share) for answer in answers]


def _in_step(pair: Pair, contexts: list[Context], pad: int) -> dict[str, Batch] | None:
    """The models at work on these prompts at once, by role. None where an engine takes one at a time."""
    roles = pair.roles_of(pair.composition)
    if any(context.translated or context.within for context in contexts):
        return None  # the positions of models with two tokenizers differ, and those of pairs that ask in their own way
    prompts = {role: [context.read_by(role) for context in contexts] for role in roles}
    batches = {role: pair.models[role].in_step(prompts[role], int(pair.config.vocab_size or 0), pad) for role in roles}
    if pair.is_one and len(contexts) == 1 and batches["aligned"] is None:
        return {"aligned": _OneRow(pair, contexts[0].ids)}
    steps = {role: batch for role, batch in batches.items() if batch is not None}
    return steps if len(steps) == len(roles) else None


class _OneRow:
    """A batch of one prompt for one model; see `kad.engines.protocols.Batch`."""

    def __init__(self, pair: Pair, prompt: list[int]) -> None:
        self.ids = torch.tensor([prompt])
        self._scorer = pair.scorers(["aligned"])["aligned"]

    def advance(self, tokens: Tensor | None = None) -> Tensor:
        """See `kad.engines.protocols.Batch`."""
        return cast("Tensor", self._scorer.advance(self.ids[0] if tokens is None else tokens, 1))


@torch.no_grad()
def _decode_in_step(
    pair: Pair,
    tokenizer: Any,
    prompts: list[Context],
    batches: dict[str, Batch],
    config: GenerationConfig,
    seeds: list[int] | None,
) -> list[Answer]:
    """The answers to some prompts, one token of each at a time."""
    device, pad = pair.device, _pad_token(tokenizer, config)
    composition = pair.composition
    prompts[0].check_rule(composition.rule)
    never_kept, never_ends = prompts[0].never_kept(pair, composition), prompts[0].never_ends(pair)
    ids = batches["aligned"].ids.to(device)
    width = ids.shape[1]
    started = _now(device)
    noise = None if seeds is None else Noise(seeds, device)
    process = processors(config, width, device)
    rooms = [pair.room(prompt.longest) for prompt in prompts]
    most = [min(int(config.max_new_tokens), room or sys.maxsize) for room in rooms]
    endings = [
        Ending(config, tokenizer, prompt.ids, "context" if limit == room else "length")
        for prompt, limit, room in zip(prompts, most, rooms, strict=True)
    ]
    answers: list[list[int]] = [[] for _ in prompts]
    going = [True] * len(prompts)
    tokens = None
    for count in range(1, max(most) + 1):
        rows: dict[str, Rows] = {role: batch.advance(tokens).to(device) for role, batch in batches.items()}
        if never_kept is not None:
            rows["base"] = never_kept.move(rows["base"], ids[:, width:].tolist(), composition.deferral_temperature)
        if never_ends:
            rows["aligned"] = lowered(cast("Tensor", rows["aligned"]), never_ends, composition.deferral_temperature)
        log_pi = compose(composition, *in_order(rows))
        raise_if_bad(log_pi, composition, *in_order(rows))
        scores = process(ids, log_pi)
        if process:  # else they are log pi, which was looked at
            refuse("the processed scores of pi", scores[torch.tensor(going)])
        best = (scores if noise is None else noise.add(scores)).argmax(dim=-1)
        tokens = torch.where(torch.tensor(going, device=device), best, pad)
        ids = torch.cat((ids, tokens.unsqueeze(-1)), dim=-1)
        for index, token in enumerate(tokens.tolist()):
            if going[index]:
                answers[index].append(token)
                going[index] = not endings[index].push(token) and count < most[index]
        if not any(going):
            break
    seconds = _now(device) - started
    reasons = [ending.reason for ending in endings]
    drafts = Drafting(0, "many prompts at once")
    return answers_at_once(tokenizer, prompts, answers, reasons, seconds, drafts, config, seeds)


def _pad_token(tokenizer: Any, config: GenerationConfig) -> int:
    candidates = (tokenizer.pad_token_id, config.pad_token_id, *end_tokens(config), 0)
    return next(int(token) for token in candidates if token is not None)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

"""Run one generation and say what happened: tokens, text, times, speculation. Imports torch and Transformers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from kad.cli.drafting import Plan
from kad.cli.past import Past
from kad.cli.prompts import Detokenizer, decode, room
from kad.cli.sampling import Sampling, end_tokens
from kad.hosts.transformers import BaseStreamer, cache_of
from kad.speculation import SpeculationStatistics

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from kad.modeling import KadForCausalLM


@dataclass(frozen=True)
class Answer:
    """What one generation gave.

    Attributes:
        prompt_tokens: length of the prompt.
        token_ids: the new tokens, an end-of-sequence token included.
        text: their text without special tokens.
        finish_reason: "stop" (end of sequence), "stop_string", "length", "context" (the models' context is full) or
            "interrupted".
        first_token: seconds until the first token was there (the prompt's forward pass and one step).
        seconds: seconds for everything.
        plan: whether the aligned model drafted, and why.
        statistics: what `kad.speculative` counted, or None.
        seed: the seed that a sampled answer was drawn with; None for greedy ones.
    """

    prompt_tokens: int
    token_ids: list[int]
    text: str
    finish_reason: str
    first_token: float
    seconds: float
    plan: Plan
    statistics: SpeculationStatistics | None
    seed: int | None

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second, the prompt's forward pass included."""
        return len(self.token_ids) / self.seconds if self.seconds > 0 else 0.0


@dataclass
class Interrupt(StoppingCriteria):
    """Ends a generation after the token at hand once `requested` is set."""

    requested: bool = False

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self.requested, dtype=torch.bool, device=input_ids.device)


@dataclass
class Stream(BaseStreamer):
    """Passes the answer's text on as it arrives, and notes when the first token came."""

    tokenizer: Any
    write: Callable[[str], None]
    started: float = field(default_factory=time.perf_counter)
    first_token: float | None = None
    tokens: int = 0

    def __post_init__(self) -> None:
        self._pieces = Detokenizer(self.tokenizer)
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:
        if not self._prompt_seen:  # Transformers sends the prompt first
            self._prompt_seen = True
            return
        if self.first_token is None:
            self.first_token = time.perf_counter() - self.started
        for token in value.flatten().tolist():
            self.tokens += 1
            self._emit(self._pieces.push(token))

    def end(self) -> None:
        self._emit(self._pieces.finish())

    def _emit(self, piece: str) -> None:
        if piece:
            self.write(piece)


def generate(
    model: KadForCausalLM,
    tokenizer: Any,
    prompt_ids: Tensor,
    sampling: Sampling,
    plan: Plan,
    *,
    write: Callable[[str], None] = lambda piece: None,
    interrupt: Interrupt | None = None,
    past: Past | None = None,
) -> Answer:
    """Generate after `prompt_ids` (1, positions), handing text to `write` as it arrives.

    What `past` remembers of the prompt is not read again, and it then remembers this generation.

    Raises:
        UsageError: the prompt fills the models' context. Else as `model.generate`.
    """
    space = room(model, prompt_ids.shape[-1])
    config = sampling.apply(model.generation_config, space)
    sampling = sampling.seeded() if config.do_sample else sampling
    if config.do_sample and sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    if config.cache_implementation is not None:
        past = None  # such caches are made for one call
    config.return_dict_in_generate = past is not None
    prompt_ids = prompt_ids.to(model.base.device)
    stream = Stream(tokenizer, write)
    statistics = SpeculationStatistics()
    output = model.generate(
        prompt_ids,
        cache=past.take(model, prompt_ids) if past is not None else None,
        attention_mask=torch.ones_like(prompt_ids),
        generation_config=config,
        streamer=stream,
        stopping_criteria=StoppingCriteriaList([interrupt]) if interrupt is not None else None,
        tokenizer=tokenizer if config.stop_strings else None,
        **plan.options(statistics),
    )
    seconds = time.perf_counter() - stream.started
    sequences: Tensor = output if past is None else output.sequences
    if past is not None:
        past.keep(cache_of(output), sequences)
    token_ids: list[int] = sequences[0, prompt_ids.shape[-1] :].tolist()
    text = decode(tokenizer, token_ids)
    return Answer(
        prompt_tokens=prompt_ids.shape[-1],
        token_ids=token_ids,
        text=text,
        finish_reason=_finish_reason(config, token_ids, text, space, interrupt),
        first_token=stream.first_token if stream.first_token is not None else seconds,
        seconds=seconds,
        plan=plan,
        statistics=statistics if plan.draft_tokens is not None else None,
        seed=sampling.seed if config.do_sample else None,
    )


@torch.inference_mode()
def plain_step_seconds(model: KadForCausalLM, prompt_ids: Tensor, token_ids: list[int], steps: int = 8) -> float | None:
    """What a step of plain decoding takes at the end of this text: the median of `steps`, measured now.

    None for a text of less than two tokens.
    """
    steps = min(steps, len(token_ids) - 1)
    if steps < 1:
        return None
    ids = torch.cat([prompt_ids.to(model.base.device), torch.tensor([token_ids], device=model.base.device)], dim=-1)
    cache, times = model.make_cache(), []
    model(ids[:, :-steps], cache=cache, logits_to_keep=1)
    for token in torch.split(ids[:, -steps:], 1, dim=-1):
        started = time.perf_counter()
        model(token, cache=cache, logits_to_keep=1).logits.argmax().item()
        times.append(time.perf_counter() - started)
    return median(times)


def _finish_reason(
    config: GenerationConfig, token_ids: list[int], text: str, space: int | None, interrupt: Interrupt | None
) -> str:
    if token_ids and token_ids[-1] in end_tokens(config):
        return "stop"
    if any(stop in text for stop in config.stop_strings or ()):
        return "stop_string"
    if interrupt is not None and interrupt.requested:
        return "interrupted"
    return "context" if len(token_ids) == space else "length"

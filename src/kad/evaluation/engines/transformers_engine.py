"""The Transformers engine: batched plain decoding, or speculative decoding one sample at a time."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kad.errors import UsageError
from kad.evaluation.engines.diagnostics import diagnose
from kad.evaluation.engines.engine import Completion, Request
from kad.evaluation.engines.gumbel import GumbelSampling
from kad.evaluation.engines.models import Models
from kad.evaluation.methods import Method
from kad.evaluation.tasks.task import Renderer, chat_renderer
from kad.modeling import KadForCausalLM
from kad.speculation import SpeculationStatistics, speculative


@dataclass
class TransformersEngine:
    """Runs methods with `generate`. `diagnostics` adds one forward pass a sample for deferred mass and
    acceptance."""

    models: Models
    diagnostics: bool = True

    def renderer(self, method: Method) -> Renderer:
        """See `Engine`."""
        return chat_renderer(self.models.tokenizer(method))

    def release(self, keep: Collection[str]) -> None:
        """See `Engine`."""
        self.models.release(keep)

    def batch_size(self, method: Method, wanted: int) -> int:
        """See `Engine`. Speculation takes one: rows that accept different numbers of drafts cannot share a cache."""
        return wanted if method.speculation is None else 1

    @torch.no_grad()
    def generate(self, method: Method, requests: Sequence[Request]) -> list[Completion]:
        """See `Engine`. All requests of a call share `max_new_tokens` and `temperature`."""
        model, tokenizer = self.models.model(method), self.models.tokenizer(method)
        # The template has already written all special tokens.
        encoded = tokenizer(
            [request.prompt for request in requests], return_tensors="pt", padding=True, add_special_tokens=False
        ).to(model.device)
        decode = _plain if method.speculation is None else _speculative
        decoded = decode(model, encoded, requests, method)
        return [self._complete(model, tokenizer, encoded, row, drawn, method) for row, drawn in enumerate(decoded)]

    def _complete(
        self, model: PreTrainedModel, tokenizer: Any, encoded: Any, row: int, drawn: Drawn, method: Method
    ) -> Completion:
        prompt = encoded["input_ids"][row][encoded["attention_mask"][row].bool()]
        completion = Completion(
            text=tokenizer.decode(drawn.tokens, skip_special_tokens=True),
            prompt_tokens=len(prompt),
            tokens=len(drawn.tokens),
            finished=drawn.finished,
            seconds=drawn.seconds,
            **drawn.speculation,
        )
        if not (self.diagnostics and isinstance(model, KadForCausalLM) and len(drawn.tokens)):
            return completion
        found = diagnose(model, prompt, drawn.tokens)
        return replace(completion, deferred_mass=found.deferred_mass, acceptance=found.acceptance)


@dataclass(frozen=True)
class Drawn:
    """The new tokens of one row, end token included, padding not."""

    tokens: Tensor
    finished: bool
    seconds: float
    speculation: dict[str, Any]


def _plain(model: PreTrainedModel, encoded: Any, requests: Sequence[Request], method: Method) -> list[Drawn]:
    first = requests[0]
    noise = []
    if first.temperature > 0:
        noise = [GumbelSampling([request.seed for request in requests], first.temperature, model.device)]
    start = _now(model)
    output = model.generate(**encoded, do_sample=False, max_new_tokens=first.max_new_tokens, logits_processor=noise)
    share = (_now(model) - start) / len(requests)
    return [_cut(model, row[encoded["input_ids"].shape[1] :], share, {}) for row in output]


def _speculative(model: PreTrainedModel, encoded: Any, requests: Sequence[Request], method: Method) -> list[Drawn]:
    if method.speculation is None or len(requests) != 1:
        raise UsageError(f"speculative decoding takes one request at a time, but got {len(requests)}")
    request, statistics = requests[0], SpeculationStatistics()
    # top_k=0: Transformers' own default would cut pi off at 50 tokens.
    sampling = {"do_sample": True, "temperature": request.temperature, "top_k": 0}
    with torch.random.fork_rng(_cuda_devices(model)):
        torch.manual_seed(request.seed)
        start = _now(model)
        output = model.generate(
            **encoded,
            **(sampling if request.temperature > 0 else {"do_sample": False}),
            max_new_tokens=request.max_new_tokens,
            custom_generate=speculative,
            num_draft_tokens=method.speculation.num_draft_tokens,
            draft_model=method.speculation.draft,
            statistics=statistics,
        )
        seconds = _now(model) - start
    lengths = {str(length): count for length, count in sorted(statistics.lengths.items())}
    counts = {"drafted": statistics.drafted, "accepted": statistics.accepted, "acceptance_lengths": lengths}
    return [_cut(model, output[0, encoded["input_ids"].shape[1] :], seconds, counts)]


def _cuda_devices(model: PreTrainedModel) -> list[torch.device]:
    return [model.device] if model.device.type == "cuda" else []


def _cut(model: PreTrainedModel, tokens: Tensor, seconds: float, speculation: dict[str, Any]) -> Drawn:
    """The row up to its first end token."""
    ends = torch.isin(tokens, torch.tensor(model.generation_config.eos_token_id, device=tokens.device)).nonzero()
    finished = len(ends) > 0
    return Drawn(tokens[: int(ends[0]) + 1] if finished else tokens, finished, seconds, speculation)


def _now(model: PreTrainedModel) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()

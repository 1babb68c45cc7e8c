"""The Transformers engine: batched plain decoding, or speculative decoding one sample at a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from kad.base_prompt import BasePrompt
from kad.errors import UsageError
from kad.evaluation.engines.engine import Completion, Request, sampling_of
from kad.evaluation.engines.models import Models
from kad.evaluation.methods import Method
from kad.evaluation.tasks.task import Continuation, Renderer, chat_renderer
from kad.modeling import KadForCausalLM
from kad.text.answer import Answer
from kad.text.batch import generate_all
from kad.text.contexts import Context, default_base_prompt, own_context
from kad.text.prompts import encode_plain
from kad.text.score import score_tokens
from kad.text.streaming import Stream


@dataclass
class TransformersEngine:
    """Runs methods in the room for text. `diagnostics` adds one forward pass a sample for deferred mass and
    acceptance."""

    models: Models
    diagnostics: bool = True

    def renderer(self, method: Method) -> Renderer:
        """See `Engine`. A base model alone may be asked in a way of its own."""
        alone = self._base_alone(method)
        if alone is not None:
            return lambda conversation: alone.render(conversation).rstrip(" ")
        return chat_renderer(self.models.tokenizer(method))

    def release(self, keep: Collection[str]) -> None:
        """See `Engine`."""
        self.models.release(keep)

    def batch_size(self, method: Method, wanted: int) -> int:
        """See `Engine`. Speculation takes one: rows that accept different numbers of drafts cannot share a cache."""
        return wanted if method.speculation is None else 1

    def generate(self, method: Method, requests: Sequence[Request]) -> list[Completion]:
        """See `Engine`. All requests of a call share `max_new_tokens` and `temperature`."""
        model, tokenizer = self.models.model(method), self.models.tokenizer(method)
        alone = self._base_alone(method)
        if alone is not None:
            prompts: list[Context] = [Context(encode_plain(tokenizer, request.prompt)) for request in requests]
            requests = [replace(request, until=(*request.until, *alone.stops)) for request in requests]
        else:
            prompts = [self._context(model, tokenizer, request) for request in requests]
        if method.speculation is None:
            answers = _plain(model, tokenizer, prompts, requests)
        else:
            answers = [_speculative(model, prompts[0], requests, method)]
        completions = [self._complete(model, answer) for answer in answers]
        return completions if alone is None else [_before(completion, alone.stops) for completion in completions]

    def _base_alone(self, method: Method) -> BasePrompt | None:
        return self.models.base_prompt if method.role == "base" else None

    def _context(self, model: PreTrainedModel, tokenizer: Any, request: Request) -> Context:
        # The template has already written all special tokens.
        ids = tokenizer(request.prompt, add_special_tokens=False).input_ids
        if not isinstance(model, KadForCausalLM):
            return Context(ids)
        model.tokenizer = tokenizer
        own = self.models.base_prompt or default_base_prompt(model)
        return Context(ids) if own is None else own_context(model, ids, own, request.conversation)

    def log_likelihoods(self, method: Method, continuations: Sequence[Continuation]) -> list[tuple[float, bool]]:
        """See `Engine`. A pair is a language model whose logits are log pi, so one code serves all methods."""
        model, tokenizer = self.models.model(method), self.models.tokenizer(method)
        return [_log_likelihood(model, *_split(tokenizer, *one)) for one in continuations]

    def _complete(self, model: PreTrainedModel, answer: Answer) -> Completion:
        if not (self.diagnostics and isinstance(model, KadForCausalLM) and answer.token_ids):
            return Completion.of(answer)
        found = score_tokens(model, answer.prompt, answer.token_ids, model.composition)
        deferred_mass = None if found.deferred_mass is None else float(found.deferred_mass.mean())
        return Completion.of(answer, deferred_mass=deferred_mass, acceptance=float(found.acceptance.mean()))


def _split(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The token ids of both, where lm-eval puts the border: a space between them belongs to the continuation."""
    kept = context.rstrip()
    whole: list[int] = tokenizer(context + continuation, add_special_tokens=False).input_ids
    before = len(tokenizer(kept, add_special_tokens=False).input_ids)
    if before:
        return whole[:before], whole[before:]
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return [start], whole


@torch.no_grad()
def _log_likelihood(model: PreTrainedModel, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    if not continuation:
        raise UsageError("An option of a question has no token; each option needs some text.")
    ids = torch.tensor([context + continuation], device=model.device)
    rows = model(ids[:, :-1], logits_to_keep=len(continuation)).logits[0].float()
    at = ids[0, -len(continuation) :]
    log_probs = rows.log_softmax(dim=-1).gather(-1, at.unsqueeze(-1))
    return float(log_probs.sum()), bool((rows.argmax(dim=-1) == at).all())


def _before(completion: Completion, stops: Sequence[str]) -> Completion:
    """The completion without the stop that ended it, and what follows."""
    text = completion.text
    for stop in stops:
        text = text.partition(stop)[0]
    return replace(completion, text=text)


def _plain(model: PreTrainedModel, tokenizer: Any, prompts: list[Context], requests: Sequence[Request]) -> list[Answer]:
    seeds = [request.seed for request in requests]
    return generate_all(
        model, tokenizer, prompts, sampling=sampling_of(requests[0]), seeds=seeds, batch_size=len(requests)
    )


def _speculative(model: KadForCausalLM, prompt: Context, requests: Sequence[Request], method: Method) -> Answer:
    if method.speculation is None or len(requests) != 1:
        raise UsageError(f"Speculative decoding takes one request at a time, but got {len(requests)}.")
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return Stream(
        model,
        prompt,
        model.composition,
        sampling_of(requests[0]),
        method.speculation.num_draft_tokens,
        drafter=method.speculation.draft,
        origins=False,
    ).finish()

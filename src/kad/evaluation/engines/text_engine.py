"""Evaluation in the room for text, on every engine that gives scorers: Transformers, llama.cpp, MLX."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kad.engines.pair import Pair
from kad.engines.transformers.modeling import KadForCausalLM
from kad.errors import UsageError
from kad.evaluation.engines.engine import Completion, SampleRequest, sampling_of
from kad.evaluation.engines.models import Models
from kad.evaluation.methods import Method
from kad.evaluation.tasks.task import Continuation, Renderer, chat_renderer
from kad.method.composition import compose
from kad.text.answer import Answer
from kad.text.batch import generate_all
from kad.text.contexts import Context, default_base_prompt, own_context
from kad.text.prompts import encode_plain
from kad.text.score import logits_of, score_tokens

COMPOSED = (KadForCausalLM, Pair)


@dataclass
class TextEngine:
    """Runs methods in the room for text. `diagnostics` adds one forward pass a sample for deferred mass and
    acceptance."""

    models: Models
    diagnostics: bool = True

    def renderer(self, method: Method) -> Renderer:
        """See `Engine`. A base model alone may be asked in a way of its own."""
        alone = self.models.asked_alone(method)
        if alone is not None:
            return lambda conversation: alone.render(conversation).rstrip(" ")
        return chat_renderer(self.models.tokenizer(method))

    def release(self, keep: Collection[str]) -> None:
        """See `Engine`."""
        self.models.release(keep)

    def batch_size(self, method: Method, wanted: int) -> int:
        """See `Engine`. Texts that accept different numbers of drafts cannot share a cache, and only Transformers
        decodes in batches."""
        return wanted if method.speculation is None and self.models.in_transformers else 1

    def generate(self, method: Method, requests: Sequence[SampleRequest]) -> list[Completion]:
        """See `Engine`. All requests of a call share `max_new_tokens` and `temperature`."""
        model, tokenizer = self.models.model(method), self.models.tokenizer(method)
        alone = self.models.asked_alone(method)
        if alone is not None:
            prompts: list[Context] = [Context(encode_plain(tokenizer, request.prompt)) for request in requests]
            requests = [replace(request, until=(*request.until, *alone.stops)) for request in requests]
        else:
            prompts = [self._context(model, tokenizer, request) for request in requests]
        way = method.speculation
        answers = generate_all(
            model,
            tokenizer,
            prompts,
            sampling=sampling_of(requests[0]),
            seeds=[request.seed for request in requests],
            batch_size=len(requests),
            num_draft_tokens=0 if way is None else way.num_draft_tokens,
            drafter="aligned" if way is None else way.draft,
        )
        completions = [self._complete(model, answer) for answer in answers]
        return completions if alone is None else [_before(completion, alone.stops) for completion in completions]

    def _context(self, model: Any, tokenizer: Any, request: SampleRequest) -> Context:
        # The template has already written all special tokens.
        ids = tokenizer(request.prompt, add_special_tokens=False).input_ids
        if not isinstance(model, COMPOSED):
            return Context(ids)
        own = self.models.base_prompt or default_base_prompt(model)
        return Context.of(ids, model) if own is None else own_context(model, ids, own, request.conversation)

    def log_likelihoods(self, method: Method, continuations: Sequence[Continuation]) -> list[tuple[float, bool]]:
        """See `Engine`. A pair is a language model whose logits are log pi."""
        model, tokenizer = self.models.model(method), self.models.tokenizer(method)
        return [_log_likelihood(model, *_split(tokenizer, *one)) for one in continuations]

    def _complete(self, model: Any, answer: Answer) -> Completion:
        if not (self.diagnostics and isinstance(model, COMPOSED) and answer.token_ids):
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
def _log_likelihood(model: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    if not continuation:
        raise UsageError("An option of a question has no token; each option needs some text.")
    rows = _rows(model, context, continuation).float()
    at = torch.tensor(continuation, device=rows.device)
    log_probs = rows.log_softmax(dim=-1).gather(-1, at.unsqueeze(-1))
    return float(log_probs.sum()), bool((rows.argmax(dim=-1) == at).all())


def _rows(model: Any, context: list[int], continuation: list[int]) -> Tensor:
    """(tokens of the continuation, vocab), the logits for each of its tokens."""
    if isinstance(model, COMPOSED):
        prompt = Context.of(context, model)
        composition = prompt.composition(model.composition)
        chunks = logits_of(model, prompt, continuation, composition=composition)
        logits = [chunk.logits for chunk in chunks]
        return torch.cat([compose(composition, x["base"], x["aligned"], x.get("reference")) for x in logits])
    if not isinstance(model, PreTrainedModel):  # one model of another engine
        ids = torch.tensor([*context, *continuation[:-1]])
        found: Tensor = model.scorer(model.vocab_size, ids.device, rollback=False).advance(ids, len(continuation))
        return found
    ids = torch.tensor([[*context, *continuation[:-1]]], device=model.device)
    rows: Tensor = model(ids, logits_to_keep=len(continuation)).logits[0]
    return rows


def _before(completion: Completion, stops: Sequence[str]) -> Completion:
    """The completion without the stop that ended it, and what follows."""
    text = completion.text
    for stop in stops:
        text = text.partition(stop)[0]
    return replace(completion, text=text)

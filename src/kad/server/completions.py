"""Chat completions and completions: a request becomes one job a choice, and their answers one document or a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate
from typing import Any

import torch
from fastapi import Request, Response
from fastapi.responses import JSONResponse

from kad.errors import VocabularyError
from kad.method.composition import Composition, compose, in_order
from kad.method.distribution import Rows
from kad.server.desk import AnswerJob, Desk, Run
from kad.server.details import Details, facts_of, position_note
from kad.server.events import EventStream, event, unless_gone
from kad.server.fields import ChatRequest, CompletionRequest, TokenizeRequest, checked_ids
from kad.server.refusals import Refusal
from kad.text.contexts import Context
from kad.text.ends import UntilStop, before_stop
from kad.text.masks import Grammars
from kad.text.prompts import decode
from kad.text.sampling import end_tokens
from kad.text.streaming import Note
from kad.tokens.token_bytes import TokenBytes

LOWEST = -9999.0
"""How OpenAI writes the log-probability of an impossible token."""

_REASONS = {"stop": "stop", "stop_string": "stop", "length": "length", "context": "length"}
AnyRequest = ChatRequest | CompletionRequest


class Completions:
    """Answers to requests of the OpenAI API, with the pair's name there."""

    def __init__(self, desk: Desk, name: str) -> None:
        self._desk, self._name = desk, name
        self._started = int(time.time())
        self._chat, self._text = ChatForm(desk.model.tokenizer), TextForm(desk.model.tokenizer)
        self._ids = IdForm(desk.model.tokenizer)
        self._grammars = Grammars(desk.model.tokenizer, end_tokens(desk.model.generation_config))

    def model(self) -> dict[str, Any]:
        """The entry of the pair in the list of models."""
        entry = {"id": self._name, "object": "model", "created": self._started, "owned_by": "kad"}
        facts = facts_of(self._desk)
        return entry | {"max_model_len": facts["context_length"], "kad": facts}

    async def tokens(self, request: TokenizeRequest) -> dict[str, Any]:
        """The tokens of a text."""
        self.check_name(request.model)
        own = partial(self._desk.model.tokenizer.encode, add_special_tokens=request.add_special_tokens)
        found = await self._desk.with_texts(own, request.prompt)
        return {"tokens": found, "count": len(found), "max_model_len": self._desk.model.context_length}

    def check_name(self, name: str) -> None:
        """Raise Refusal for the name of another model."""
        if name != self._name:
            text = f"There is no model {name[:80]!r} here. This server has {self._name!r}."
            raise Refusal(404, text, "model", "model_not_found")

    async def respond(self, request: AnyRequest, http: Request) -> Response:
        """The answer to a request, as one document or as a stream."""
        self.check_name(request.model)
        form: Form = self._chat if isinstance(request, ChatRequest) else self._text
        if isinstance(request, CompletionRequest) and request.return_tokens_as_token_ids:
            form = self._ids
        usage = Usage()
        deltas = self._deltas(request, usage, form)
        head = {"id": f"{form.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": self._name}
        if not request.stream:
            choices = await unless_gone(http.receive, _whole(form, deltas))
            return JSONResponse({**head, "object": form.kind, "choices": choices, "usage": usage.to_dict()})
        wants_usage = request.stream_options is not None and request.stream_options.include_usage
        events = _events(form, head, deltas, usage if wants_usage else None)
        return EventStream(await unless_gone(http.receive, anext(events)), events)

    async def _deltas(self, request: AnyRequest, usage: Usage, form: Form) -> AsyncGenerator[Delta]:
        """The choices, one after the other. Each waits in the line again, so that other requests can come between.

        All work for a request is done in its place in the line, the tokens of its prompt and its grammar too. `usage`
        counts the tokens.
        """
        desk = self._desk
        with desk.admitted():
            jobs = await desk.with_texts(self._jobs, request)
            previous: Context | None = None
            for choice, job in enumerate(jobs):
                model = desk.model_of(job)
                ends, visible = end_tokens(model.generation_config), UntilStop(job.sampling.stop)
                details = None if request.kad is None else Details(desk, job)
                async with desk.answering(job) as run:
                    async for piece in run:
                        text = visible.push(piece.text)
                        if details is not None:
                            yield Delta(choice, text, kad=details.token(piece, run))
                        else:
                            # The tokens that end a text are no part of the log-probabilities, but where ids are asked.
                            named = piece.token not in ends or form is self._ids
                            yield Delta(choice, text, piece.note if named else None)
                # Nothing is drawn after a continuation that ends the text.
                complete = bool(job.begun) and job.begun[-1] in ends
                reason = "stop" if complete else run.answer.finish_reason
                usage.add(run, first=job.context is not previous)
                previous = job.context
                end = None
                if details is not None:
                    text = decode(model.tokenizer, [*job.begun, *run.answer.token_ids])
                    end = details.end(run.answer, reason, before_stop(text, job.sampling.stop, reason == "stop_string"))
                yield Delta(choice, visible.finish(reason == "stop_string"), finish_reason=_REASONS[reason], kad=end)

    def _jobs(self, request: AnyRequest) -> list[AnswerJob]:
        """One job a choice: for each prompt, `n` of them."""
        model, detail, masks = self._desk.model, request.kad, list[Any]()
        alone = self._desk.base_model if detail is not None and detail.of == "base" else None
        if alone is not None and (request.schema_of_text or request.logit_bias):
            text = "The base model alone has tokens of its own here: leave out 'response_format' and 'logit_bias'."
            raise Refusal(400, text, "kad")
        if request.schema_of_text is not None:
            masks.append(self._grammars.of_schema(request.schema_of_text).mask)
        if request.penalties:
            checked_ids(model, list(request.penalties.bias), "logit_bias")
            masks.append(request.penalties.mask)
        jobs = []
        for context in request.contexts(model):
            stops, answering = request.stops, model
            if alone is not None:
                stops, answering, context = [*stops, *context.stops], alone, Context(context.base_ids or [])
            composition = request.composition(answering)
            begun = [] if detail is None else checked_ids(answering, detail.continuation, "kad.continuation")
            answering.room(context.longest + len(begun))
            job = AnswerJob(
                context,
                composition,
                num_draft_tokens=request.num_draft_tokens if alone is None else 0,
                masks=[partial(mask, len(context.ids)) for mask in masks],
                note=position_note(composition) if detail is not None else logprob_note(composition, request.top),
                begun=begun,
                alone=alone is not None,
            )
            jobs += [replace(job, sampling=request.sampling(stops, choice)) for choice in range(request.n)]
        return jobs


@dataclass(frozen=True)
class TokenLogprob:
    """A token's log pi, before any sampling option, and the most probable tokens at its position."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


def logprob_note(composition: Composition, top: int | None) -> Note | None:
    """Each token as a `TokenLogprob`, with the `top` most probable tokens. None for no note."""
    if top is None:
        return None

    def note(tokens: Sequence[int], rows: dict[str, Rows]) -> list[TokenLogprob]:
        log_pi = compose(composition, *in_order(rows)).clamp(LOWEST, 0.0).cpu()
        best = log_pi.topk(top, dim=-1)
        own = log_pi[torch.arange(len(tokens)), torch.tensor(tokens)].tolist()
        tops = map(zip, best.indices.tolist(), best.values.tolist())
        return [TokenLogprob(token, logprob, list(top)) for token, logprob, top in zip(tokens, own, tops, strict=True)]

    return note


@dataclass(frozen=True)
class Delta:
    """A step of one choice.

    Attributes:
        text: more text, possibly none.
        token: the step's token, if the request needs its log-probability.
        finish_reason: at the end of the choice.
        kad: the field `kad` of the chunk, if the request has one.
    """

    choice: int
    text: str
    token: TokenLogprob | None = None
    finish_reason: str | None = None
    kad: dict[str, Any] | None = None


@dataclass
class Usage:
    """Counts over the choices of a request."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    rejected: int = 0

    def add(self, run: Run, first: bool) -> None:
        """Count an answer. Only the first of several answers to a prompt counts the prompt."""
        answer = run.answer
        if first:
            self.prompt_tokens += len(answer.prompt_ids)
            self.cached_tokens += run.reused_tokens
        self.completion_tokens += len(answer.token_ids)
        self.accepted += sum(piece.event == "accepted" for piece in answer.pieces)
        if answer.statistics is not None:
            self.drafted += answer.statistics.drafted
            self.rejected += answer.statistics.drafted - answer.statistics.accepted

    def to_dict(self) -> dict[str, Any]:
        """As the API has it. A draft of the aligned model is what the API calls a prediction.

        Drafts that were accepted but stand after the end of the text are neither accepted nor rejected here.
        """
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {
                "accepted_prediction_tokens": self.accepted,
                "rejected_prediction_tokens": self.rejected,
                "drafted_tokens": self.drafted,
            },
        }


class Form:
    """The JSON of choices. A token is its text there, and its bytes.

    Attributes:
        prefix, kind, chunk_kind: the prefix of a document's id, the field `object`, and that of a chunk.
        opening: the fields of a stream before the first step of a choice.
    """

    prefix = kind = chunk_kind = ""
    opening: dict[str, Any] | None = None

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._known = tokenizer, dict[int, tuple[str, list[int]]]()

    def whole(self, text: str, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """A complete choice."""
        return self.step(text, tokens, 0)

    def step(self, text: str, tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
        """A step of a choice, which has `offset` characters so far."""
        raise NotImplementedError

    def word(self, token: int) -> tuple[str, list[int]]:
        """The text of one token, and its bytes."""
        if token not in self._known:
            text = decode(self._tokenizer, [token], special=True)
            raw = self._bytes[token] if token < len(self._bytes) else None
            self._known[token] = text, list(text.encode() if raw is None else raw)
        return self._known[token]

    @cached_property
    def _bytes(self) -> Sequence[bytes | None]:
        try:
            return TokenBytes.of(self._tokenizer, len(self._tokenizer)).pieces
        except VocabularyError:  # then the bytes of the text must do
            return []


class ChatForm(Form):
    """Choices of chat completions."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"
    opening = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def whole(self, text: str, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"message": message, "logprobs": self._logprobs(tokens)}

    def step(self, text: str, tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
        return {"delta": {"content": text} if text or tokens else {}, "logprobs": self._logprobs(tokens)}

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        content = [
            self._entry(token.token, token.logprob) | {"top_logprobs": [self._entry(*other) for other in token.top]}
            for token in tokens
        ]
        return {"content": content, "refusal": None} if tokens else None

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text, raw = self.word(token)
        return {"token": text, "bytes": raw, "logprob": logprob}


class TextForm(Form):
    """Choices of completions."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def step(self, text: str, tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
        words = [self.word(token.token)[0] for token in tokens]
        logprobs = {
            "tokens": words,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{self.word(other)[0]: value for other, value in token.top} for token in tokens],
            "text_offset": list(accumulate(map(len, words), initial=offset))[:-1],
        }
        return {"text": text, "logprobs": logprobs if tokens else None}


class IdForm(TextForm):
    """Choices of completions in which a token is named by its id, in vLLM's words."""

    def word(self, token: int) -> tuple[str, list[int]]:
        return f"token_id:{token}", []


async def _whole(form: Form, deltas: AsyncGenerator[Delta]) -> list[dict[str, Any]]:
    """All choices, complete."""
    steps: dict[int, list[Delta]] = {}
    async for delta in deltas:
        steps.setdefault(delta.choice, []).append(delta)
    return [
        {"index": index, "finish_reason": parts[-1].finish_reason}
        | form.whole("".join(part.text for part in parts), [part.token for part in parts if part.token is not None])
        for index, parts in steps.items()
    ]


async def _events(
    form: Form, head: dict[str, Any], deltas: AsyncGenerator[Delta], usage: Usage | None
) -> AsyncGenerator[bytes]:
    """The chunks of a stream. With `usage`, the last one says it."""
    head = head | {"object": form.chunk_kind}

    def chunk(choices: list[dict[str, Any]], **more: Any) -> bytes:
        return event({**head, "choices": choices} | ({} if usage is None else {"usage": None}) | more)

    current, offset = -1, 0
    try:
        async for delta in deltas:
            if delta.choice != current:
                current, offset = delta.choice, 0
                if form.opening is not None:
                    yield chunk([{"index": current} | form.opening])
            tokens = [] if delta.token is None else [delta.token]
            if delta.text or tokens or delta.finish_reason is not None or delta.kad is not None:
                choice = {"index": current, "finish_reason": delta.finish_reason}
                more = {} if delta.kad is None else {"kad": delta.kad}
                yield chunk([choice | form.step(delta.text, tokens, offset)], **more)
                offset += len(delta.text)
        if usage is not None:
            yield chunk([], usage=usage.to_dict())
        yield event("[DONE]")
    finally:
        await deltas.aclose()

"""The routes of the OpenAI API: models, chat completions, completions."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse

from kad.server.desk import Desk, Job
from kad.server.errors import Refusal
from kad.server.events import EventStream, event, unless_gone
from kad.server.fields import checked_ids, plain
from kad.server.grammar import Grammars
from kad.server.openai_answers import Delta, TokenLogprob, Usage, Words, deltas, logprob_note
from kad.server.openai_fields import ChatRequest, CompletionRequest, Generation
from kad.text.contexts import Context
from kad.text.sampling import end_tokens


def router(desk: Desk, name: str) -> APIRouter:
    """The routes, for the pair at this desk, which is served under this name."""
    routes, service = APIRouter(prefix="/v1"), _Service(desk, name)

    @routes.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [service.model()]}

    @routes.get("/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        service.check_name(model)
        return service.model()

    @routes.post("/chat/completions")
    async def chat(asked: ChatRequest, http: HttpRequest) -> Response:
        return await service.respond(asked, _Chat(service.words), http)

    @routes.post("/completions")
    async def completions(asked: CompletionRequest, http: HttpRequest) -> Response:
        return await service.respond(asked, _Completion(service.words), http)

    return routes


class _Service:
    """What the routes share."""

    def __init__(self, desk: Desk, name: str) -> None:
        self.desk, self.name = desk, name
        self.started = int(time.time())
        self.ends = end_tokens(desk.model.generation_config)
        self.words = Words(desk.model.tokenizer)
        self.grammars = Grammars(desk.model.tokenizer, self.ends)

    def model(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self.started, "owned_by": "kad"}

    def check_name(self, name: str) -> None:
        if name != self.name:
            text = f"There is no model {name[:80]!r} here. This server has {self.name!r}."
            raise Refusal(404, text, "model", "model_not_found")

    async def respond(self, asked: ChatRequest | CompletionRequest, form: _Form, http: HttpRequest) -> Response:
        self.check_name(asked.model)
        jobs = await self.desk.with_texts(self._jobs, asked)
        usage = Usage()
        steps = deltas(self.desk, jobs, self.ends, usage)
        head = {"id": f"{form.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.name}
        if not asked.stream:
            choices = await unless_gone(http.receive, form.choices(steps, len(jobs)))
            return JSONResponse({**head, "object": form.kind, "choices": choices, "usage": usage.to_dict()})
        options = asked.stream_options
        wants_usage = options is not None and options.include_usage
        events = _events(form, head, steps, usage if wants_usage else None)
        return EventStream(await unless_gone(http.receive, anext(events)), events)

    def _jobs(self, asked: ChatRequest | CompletionRequest) -> list[Job]:
        """One job a choice: for each prompt, `n` of them."""
        grammar = None
        if asked.response_format is not None and (schema := asked.response_format.schema) is not None:
            grammar = self.grammars.of_schema(schema)
        penalties, jobs = asked.penalties, []
        checked_ids(self.desk.model, list(penalties.bias), "logit_bias")
        changes = [*([] if grammar is None else [grammar.mask]), *([penalties.mask] if penalties else [])]
        for context in self._contexts(asked):
            masks = [partial(change, len(context.ids)) for change in changes]
            for choice in range(asked.n):
                sampling = asked.sampling(asked.new_tokens, asked.stops, choice)
                job = asked.job(self.desk.model, context, sampling, masks=masks)
                top = _top(asked)
                if top is not None:
                    job = replace(job, note=logprob_note(job.composition, top))
                jobs.append(job)
        return jobs

    def _contexts(self, asked: ChatRequest | CompletionRequest) -> list[Context]:
        model = self.desk.model
        if isinstance(asked, ChatRequest):
            return [asked.context(model, plain(asked.messages), thinking=asked.thinking)]
        return [
            asked.context(model, prompt, raw=True)
            if isinstance(prompt, str)
            else asked.context(model, checked_ids(model, prompt, "prompt"))
            for prompt in asked.prompts
        ]


def _top(asked: Generation) -> int | None:
    """How many most probable tokens are wanted; None if no log-probability is."""
    if isinstance(asked, ChatRequest):
        return (asked.top_logprobs or 0) if asked.logprobs else None
    return asked.logprobs if isinstance(asked, CompletionRequest) else None


@dataclass
class _Choice:
    text: str = ""
    tokens: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass
class _Form(ABC):
    """How choices and their steps are written: `_Chat` or `_Completion`."""

    words: Words
    prefix = kind = chunk_kind = ""

    async def choices(self, steps: AsyncGenerator[Delta], count: int) -> list[dict[str, Any]]:
        """All choices, whole."""
        found = [_Choice() for _ in range(count)]
        async for step in steps:
            choice = found[step.choice]
            choice.text += step.text
            choice.tokens += [] if step.token is None else [step.token]
            choice.finish_reason = step.finish_reason
        return [
            {"index": index, "finish_reason": choice.finish_reason} | self.whole(choice)
            for index, choice in enumerate(found)
        ]

    def first(self, choice: int) -> dict[str, Any] | None:
        """What a stream says before the first step of a choice."""
        return None

    @abstractmethod
    def whole(self, choice: _Choice) -> dict[str, Any]:
        """A whole choice."""

    @abstractmethod
    def step(self, step: Delta, offset: int) -> dict[str, Any]:
        """A step of a choice, which has `offset` characters so far."""


class _Chat(_Form):
    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def first(self, choice: int) -> dict[str, Any] | None:
        return {"index": choice, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def whole(self, choice: _Choice) -> dict[str, Any]:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        return {"message": message, "logprobs": self._logprobs(choice.tokens)}

    def step(self, step: Delta, offset: int) -> dict[str, Any]:
        delta = {"content": step.text} if step.text or step.token is not None else {}
        return {"delta": delta, "logprobs": self._logprobs([] if step.token is None else [step.token])}

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        return {"content": [self.words.chat(token) for token in tokens], "refusal": None} if tokens else None


class _Completion(_Form):
    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def whole(self, choice: _Choice) -> dict[str, Any]:
        return {"text": choice.text, "logprobs": self.words.completion(choice.tokens, 0) if choice.tokens else None}

    def step(self, step: Delta, offset: int) -> dict[str, Any]:
        logprobs = None if step.token is None else self.words.completion([step.token], offset)
        return {"text": step.text, "logprobs": logprobs}


async def _events(
    form: _Form, head: dict[str, Any], steps: AsyncGenerator[Delta], usage: Usage | None
) -> AsyncGenerator[bytes]:
    """The chunks of a stream; the last one has the usage, if it is wanted."""
    head = head | {"object": form.chunk_kind}

    def chunk(choices: list[dict[str, Any]], used: dict[str, Any] | None = None) -> bytes:
        return event({**head, "choices": choices} | ({} if usage is None else {"usage": used}))

    current, offset = -1, 0
    try:
        async for step in steps:
            if step.choice != current:
                current, offset = step.choice, 0
                if (first := form.first(current)) is not None:
                    yield chunk([first])
            if step.text or step.token is not None or step.finish_reason is not None:
                yield chunk([{"index": current, "finish_reason": step.finish_reason} | form.step(step, offset)])
                offset += len(step.text)
        if usage is not None:
            yield chunk([], usage.to_dict())
        yield event("[DONE]")
    finally:
        await steps.aclose()

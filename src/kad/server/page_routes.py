"""The routes of the playground; `kad.server.page_fields` says what goes over them."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

import torch
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import HTMLResponse
from torch import Tensor

import kad
from kad.engines.protocols import ComposedModel
from kad.method.composition import Composition
from kad.method.rules import registry
from kad.method.rules.describe import describe, family
from kad.server.desk import Desk, Job, Run
from kad.server.events import EventStream, event, unless_gone
from kad.server.fields import checked_ids, plain
from kad.server.openai_answers import UntilStop
from kad.server.page_fields import AnswerRequest, Done, ModelFacts, PieceEvent, Start, TraceRequest
from kad.text.answer import Answer, Piece
from kad.text.contexts import Context
from kad.text.prompts import Detokenizer, context_length, decode
from kad.text.streaming import Note
from kad.tracing.ask import how_generated, trace
from kad.tracing.positions import Position
from kad.tracing.schema import SCHEMA, Trace
from kad.tracing.tracer import HEAD, mentioned, origins, own_prompt, record


def router(desk: Desk, name: str) -> APIRouter:
    """The routes, for the pair at this desk, which is served under this name."""
    routes, model = APIRouter(prefix="/kad"), desk.model

    @routes.get("/model")
    async def facts() -> ModelFacts:
        return facts_of(desk, name)

    @routes.post("/answer")
    async def answer(asked: AnswerRequest, http: HttpRequest) -> EventStream:
        job = await desk.with_texts(_job, desk, asked)
        events = _events(desk, job, asked.of)
        return EventStream(await unless_gone(http.receive, anext(events)), events, "error")

    @routes.post("/trace")
    async def given_answer(asked: TraceRequest, http: HttpRequest) -> dict[str, Any]:
        with desk.admitted():
            made = await unless_gone(http.receive, desk.with_models(_trace, model, asked))
        return made.to_dict()

    @routes.post("/page")
    async def trace_page(asked: dict[str, Any]) -> HTMLResponse:
        made = await desk.with_texts(Trace.from_dict, asked)
        return HTMLResponse(made.to_html(), headers={"Content-Disposition": 'attachment; filename="trace.html"'})

    return routes


def facts_of(desk: Desk, name: str) -> ModelFacts:
    """What a page shows before the first question."""
    model, composition, config = desk.model, desk.model.composition, desk.model.generation_config
    rules = [describe(rule) for rule in registry().values() if "reference" in model.facts or not rule.needs_reference]
    drawing = {
        key: getattr(config, key) if config.do_sample else None for key in ("temperature", "top_k", "top_p", "min_p")
    }
    return ModelFacts(
        name=name,
        kad_version=kad.__version__,
        models=origins(model, composition),
        parameters={role: facts.parameters for role, facts in model.facts.items()},
        engines={role: facts.engine for role, facts in model.facts.items()},
        context_length=context_length(model),
        rule=str(composition.rule),
        rule_values=composition.rule.to_dict(),
        deferral_temperature=composition.deferral_temperature,
        rules=[_bounded(rule) for rule in rules],
        sampling=drawing | {"max_new_tokens": config.max_new_tokens},
        waiting=desk.requests,
    )


def _bounded(rule: dict[str, Any]) -> dict[str, Any]:
    """A description without infinities, which JSON lacks."""

    def finite(value: Any) -> Any:
        return None if isinstance(value, float) and abs(value) == float("inf") else value

    parameters = [{key: finite(value) for key, value in parameter.items()} for parameter in rule["parameters"]]
    return rule | {"parameters": parameters}


def _job(desk: Desk, asked: AnswerRequest) -> Job:
    """What to ask for at the desk."""
    model, stops = desk.model, asked.stop
    context = asked.context(model, plain(asked.messages), thinking=asked.thinking)
    alone = desk.base_alone if asked.of == "base" else None
    if alone is not None:
        model, stops, context = alone, [*stops, *context.stops], Context(context.base_ids or [])
    begun = checked_ids(model, asked.continuation, "continuation")
    job = asked.job(model, context, asked.sampling(asked.max_new_tokens, stops), begun=begun)
    job = replace(job, note=_note(context.composition(job.composition)))
    return job if alone is None else replace(job, alone=True, num_draft_tokens=0)


def _note(composition: Composition) -> Note:
    """Each token as a position of a trace."""

    def note(tokens: Sequence[int], rows: dict[str, Tensor]) -> list[Position]:
        logits = {role: part.cpu() for role, part in rows.items()}
        return record(composition, torch.tensor(tokens), logits["base"], logits["aligned"], logits.get("reference"))

    return note


async def _events(desk: Desk, job: Job, of: str) -> AsyncGenerator[bytes]:
    model = desk.model_of(job)
    text = _Texts(model.tokenizer, job.begun[:-1], job.alone)
    index = first = max(len(job.begun) - 1, 0)
    with desk.admitted():
        async with desk.answering(job) as run:
            began = time.perf_counter()
            async for piece in run:
                if index == first:
                    began = time.perf_counter() - run.answer.seconds
                    yield event(_start(desk, job, run, of).model_dump(), "start")
                forced = bool(job.begun) and index == first
                seconds = time.perf_counter() - began
                yield event(text.piece(index, piece, forced, seconds).model_dump(), "piece")
                index += 1
            yield event(_done(model, run.answer, job, text.finish()).model_dump(), "done")


def _start(desk: Desk, job: Job, run: Run, of: str) -> Start:
    model, rule, answer, context = desk.model_of(job), job.composition.rule, run.answer, job.context
    names = origins(desk.model, job.composition)
    return Start(
        trace={
            "schema": SCHEMA,
            "rule": rule.to_dict(),
            "rule_text": str(rule),
            "family": family(type(rule)),
            "models": {"base": names["base"]} if job.alone else names,
            "deferral_temperature": job.composition.deferral_temperature,
            "prompt": decode(model.tokenizer, context.ids, special=True),
            "base_prompt": own_prompt(model, context),
            "kad_version": kad.__version__,
        },
        of=of,
        prompt_tokens=len(context.ids),
        reused_tokens=run.reused_tokens,
        draft_tokens=answer.drafting.draft_tokens,
        drafting=answer.drafting.reason,
        seed=answer.seed,
        temperature=answer.temperature,
    )


def _done(model: ComposedModel, answer: Answer, job: Job, rest: str) -> Done:
    token_ids = [*job.begun, *answer.token_ids]
    text = decode(model.tokenizer, token_ids)
    if job.alone:  # a stop of its prompt is no part of what it says
        text = UntilStop(job.sampling.stop).push(text)
    # A continuation that ends the text is stopped before anything is drawn.
    reason = answer.finish_reason if answer.token_ids else "stop"
    return Done(
        text=text,
        token_ids=token_ids,
        finish_reason=reason,
        seconds=answer.seconds,
        first_token=answer.first_token,
        tokens_per_second=answer.tokens_per_second,
        rest=rest,
        statistics=None if answer.statistics is None else answer.statistics.to_dict(),
        generation=how_generated(answer) | {"finish_reason": reason},
    )


class _Texts:
    """The texts of tokens as they come: of the answer, special tokens included, and of what a position mentions."""

    def __init__(self, tokenizer: Any, before: Sequence[int], alone: bool) -> None:
        self._tokenizer, self._known, self._alone = tokenizer, set[int](), alone
        self._answer = Detokenizer(tokenizer, special=True)
        for token in before:
            self._answer.push(token)

    def piece(self, index: int, piece: Piece, forced: bool, seconds: float) -> PieceEvent:
        position = replace(
            piece.note, text=self._answer.push(piece.token), event=piece.event, rejected_draft=piece.rejected_draft,
            dropped_drafts=piece.dropped_drafts,
        )  # fmt: skip
        if self._alone:
            position = replace(position, candidates=position.candidates[:HEAD])
        new = mentioned([position]) - self._known
        self._known |= new
        vocabulary = {token: self._tokenizer.decode([token]) for token in sorted(new)}
        shown = _of_one_model(position) if self._alone else position.to_dict()
        return PieceEvent(index=index, position=shown, vocabulary=vocabulary, forced=forced, seconds=seconds)

    def finish(self) -> str:
        return self._answer.finish()


def _of_one_model(position: Position) -> dict[str, Any]:
    """A position without what compares two models."""
    candidates = [[row.token, row.p, None, row.pi] for row in position.candidates]
    nothing = dict.fromkeys(("p_aligned", "deferred_mass", "tau", "acceptance", "divergence", "overlap"))
    return position.to_dict() | nothing | {"candidates": candidates}


def _trace(model: Any, asked: TraceRequest) -> Trace:
    token_ids = checked_ids(model, asked.token_ids, "token_ids")
    return trace(
        model, plain(asked.messages), token_ids, thinking=asked.thinking, base_prompt=asked.base_prompt,
        rule=asked.rule, deferral_temperature=asked.deferral_temperature,
    )  # fmt: skip

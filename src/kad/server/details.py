"""The field `kad`: what only kad knows of a pair, and of every token of an answer. The playground's page shows it.

In the list of models it describes the pair. In the chunks of a stream it is there if the request has a field `kad`
(`kad.server.fields.KadField`). Put together, the chunks are a trace (`kad.tracing.schema`). A base model alone with a
tokenizer of its own answers in its own tokens: its trace names no other model, and what compares two is None.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from kad.method.composition import Composition, in_order
from kad.method.distribution import Rows
from kad.method.rules import registry
from kad.method.rules.describe import describe
from kad.server.desk import AnswerJob, Desk, Run
from kad.text.answer import Answer, Piece
from kad.text.prompts import Detokenizer, decode
from kad.text.streaming import Note
from kad.tracing.ask import how_generated
from kad.tracing.positions import Position
from kad.tracing.schema import SCHEMA
from kad.tracing.tracer import HEAD, head_of, mentioned, origins, record, with_event


def facts_of(desk: Desk) -> dict[str, Any]:
    """The pair.

    models, parameters, engines: role -> where the model came from, its number of weights, what runs it.
    context_length: positions for prompt and answer. None if no model says.
    rule, deferral_temperature: the pair's own; `rule_values` are the parts of the rule.
    rules: every rule that the pair can carry out, as `kad.method.rules.describe` says it. None is no bound.
    sampling: the aligned model's own settings. The temperature of greedy decoding is None.
    waiting: how many requests are in the line now.
    """
    model, composition, config = desk.model, desk.model.composition, desk.model.generation_config
    drawing = ("temperature", "top_k", "top_p", "min_p")
    rules = [describe(rule) for rule in registry().values() if "reference" in model.facts or not rule.needs_reference]
    return {
        "models": origins(model, composition),
        "parameters": {role: facts.parameters for role, facts in model.facts.items()},
        "engines": {role: facts.engine for role, facts in model.facts.items()},
        "context_length": model.context_length,
        "rule": str(composition.rule),
        "rule_values": composition.rule.to_dict(),
        "deferral_temperature": composition.deferral_temperature,
        "rules": [rule | {"parameters": [_bounded(each) for each in rule["parameters"]]} for rule in rules],
        "sampling": {name: getattr(config, name) if config.do_sample else None for name in drawing}
        | {"max_new_tokens": config.max_new_tokens},
        "waiting": desk.requests,
    }


def _bounded(parameter: dict[str, Any]) -> dict[str, Any]:
    """A parameter without infinities, which JSON lacks."""
    infinite = (float("inf"), float("-inf"))
    return {name: None if value in infinite else value for name, value in parameter.items()}


def position_note(composition: Composition) -> Note:
    """Each token as a position of a trace."""

    def note(tokens: Sequence[int], rows: dict[str, Rows]) -> list[Position]:
        logits = {role: part.to("cpu") for role, part in rows.items()}
        return record(composition, torch.tensor(tokens), *in_order(logits))

    return note


class Details:
    """The fields `kad` of one answer. The job's note is `position_note`."""

    def __init__(self, desk: Desk, job: AnswerJob) -> None:
        self._desk, self._job, self._model = desk, job, desk.model_of(job)
        self._text = Detokenizer(self._model.tokenizer, special=True)
        self._vocabulary = set[int]()
        self._began: float | None = None
        for token in job.begun[:-1]:
            self._text.push(token)

    def token(self, piece: Piece, run: Run) -> dict[str, Any]:
        """The field of a chunk with a token.

        trace: with the first token, the trace but its positions and its vocabulary.
        position: see `kad.tracing.positions.Position`; its text has the special tokens, too.
        vocabulary: the texts of tokens that were not mentioned before, by id.
        seconds: since the models began with this answer.
        """
        first = self._began is None
        if self._began is None:
            self._began = time.perf_counter() - run.answer.seconds
        position = replace(with_event(piece.note, piece), text=self._text.push(piece.token))
        if self._job.alone:
            position = replace(position, candidates=position.candidates[:HEAD])
        new = mentioned([position]) - self._vocabulary
        self._vocabulary |= new
        return ({"trace": self._trace(run.answer)} if first else {}) | {
            "position": _of_one_model(position) if self._job.alone else position.to_dict(),
            "vocabulary": {token: self._model.tokenizer.decode([token]) for token in sorted(new)},
            "seconds": time.perf_counter() - self._began,
        }

    def end(self, answer: Answer, reason: str, text: str) -> dict[str, Any]:
        """The field of the last chunk.

        text: the answer, the continuation included.
        generation: the field of that name for a trace, with the reason why the answer ended.
        tokens_per_second: of the new tokens.
        """
        generation = how_generated(answer) | {"finish_reason": reason}
        return {"text": text, "generation": generation, "tokens_per_second": answer.tokens_per_second}

    def _trace(self, answer: Answer) -> dict[str, Any]:
        job, prompt = self._job, decode(self._model.tokenizer, self._job.context.ids, special=True)
        head = head_of(self._model, job.composition, job.context, how_generated(answer))
        names = origins(self._desk.model, job.composition)
        models = {"base": names["base"]} if job.alone else names
        return {"schema": SCHEMA, **head, "models": models, "prompt": prompt}


def _of_one_model(position: Position) -> dict[str, Any]:
    """A position without what compares two models."""
    candidates = [[row.token, row.p, None, row.pi] for row in position.candidates]
    nothing = dict.fromkeys(("p_aligned", "deferred_mass", "tau", "acceptance", "divergence", "overlap"))
    return position.to_dict() | nothing | {"candidates": candidates}

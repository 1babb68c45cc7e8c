"""Pieces of answers as the OpenAI API has them: choices, text up to a stop, log-probabilities of pi, usage."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from kad.errors import VocabularyError
from kad.method.composition import Composition, compose, in_order
from kad.method.distribution import Rows
from kad.server.desk import Desk, Job, Run
from kad.server.errors import Refusal
from kad.text.contexts import Context
from kad.text.ends import UntilStop
from kad.text.prompts import decode
from kad.text.streaming import Note
from kad.tokens.token_bytes import TokenBytes

LOWEST = -9999.0
"""How OpenAI writes the log-probability of what cannot be."""

_REASONS = {"stop": "stop", "stop_string": "stop", "length": "length", "context": "length"}


@dataclass(frozen=True)
class TokenLogprob:
    """A token's log pi, before any sampling option, and the most probable tokens at its position."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


def logprob_note(composition: Composition, top: int) -> Note:
    """Each token as a `TokenLogprob`, with the `top` most probable tokens."""

    def note(tokens: Sequence[int], rows: dict[str, Rows]) -> list[TokenLogprob]:
        log_pi = compose(composition, *in_order(rows)).clamp(LOWEST, 0.0).cpu()
        best = log_pi.topk(top, dim=-1)
        own = log_pi[torch.arange(len(tokens)), torch.tensor(tokens)].tolist()
        tops = [
            list(zip(ids, values, strict=True))
            for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        return [TokenLogprob(*parts) for parts in zip(tokens, own, tops, strict=True)]

    return note


@dataclass(frozen=True)
class Delta:
    """A step of one choice.

    Attributes:
        choice: its number.
        text: more text, possibly none.
        token: the step's token, if its log-probability was asked for.
        finish_reason: at the end of the choice.
    """

    choice: int
    text: str
    token: TokenLogprob | None = None
    finish_reason: str | None = None


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


async def deltas(desk: Desk, jobs: Sequence[Job], ends: Sequence[int], usage: Usage) -> AsyncGenerator[Delta]:
    """The choices, one after the other. Each waits in the line again, so that others are not kept waiting for all.

    Args:
        desk: where the answers are asked for.
        jobs: one a choice.
        ends: the tokens that end a text. They are no part of the log-probabilities.
        usage: counts what was done.
    """
    with desk.admitted():
        previous: Context | None = None
        for choice, job in enumerate(jobs):
            shown = UntilStop(job.sampling.stop)
            async with desk.answering(job) as run:
                async for piece in run:
                    token = piece.note if piece.token not in ends else None
                    yield Delta(choice, shown.push(piece.text), token)
            if run.answer.finish_reason not in _REASONS:
                raise Refusal(503, "The server is being stopped.")
            usage.add(run, first=job.context is not previous)
            previous = job.context
            yield Delta(choice, shown.finish(), finish_reason=_REASONS[run.answer.finish_reason])


@dataclass
class Words:
    """Tokens as the API writes them: a text, and the bytes that it stands for."""

    tokenizer: Any
    _known: dict[int, tuple[str, list[int]]] = field(default_factory=dict)

    def chat(self, token: TokenLogprob) -> dict[str, Any]:
        """An entry of `logprobs.content` of a chat completion."""
        top = [self._entry(other, value) for other, value in token.top]
        return self._entry(token.token, token.logprob) | {"top_logprobs": top}

    def completion(self, tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
        """`logprobs` of a completion, whose text so far has `offset` characters."""
        texts, offsets = [self.text(token.token) for token in tokens], []
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{self.text(other): value for other, value in token.top} for token in tokens],
            "text_offset": offsets,
        }

    def text(self, token: int) -> str:
        """The text of one token."""
        return self._of(token)[0]

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text, raw = self._of(token)
        return {"token": text, "bytes": raw, "logprob": logprob}

    def _of(self, token: int) -> tuple[str, list[int]]:
        if token not in self._known:
            text = decode(self.tokenizer, [token], special=True)
            raw = self._bytes[token] if token < len(self._bytes) else None
            self._known[token] = text, list(text.encode() if raw is None else raw)
        return self._known[token]

    @cached_property
    def _bytes(self) -> Sequence[bytes | None]:
        try:
            return TokenBytes.of(self.tokenizer, len(self.tokenizer)).pieces
        except VocabularyError:  # then the bytes of the text must do
            return []

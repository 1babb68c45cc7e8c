"""An answer, made of pieces: finished, or under way."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from kad import palette
from kad.errors import ServerError
from kad.method.speculation.loop import Event
from kad.method.speculation.statistics import SpeculationStatistics
from kad.text.contexts import Context
from kad.text.drafting import Drafting
from kad.text.prompts import decode
from kad.text.sampling import Sampling, temperature_of
from kad.words import counted

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from kad.engines.pair import Pair


@dataclass(frozen=True)
class Piece:
    """One token of an answer.

    Attributes:
        token: its id.
        text: what it adds to the text; "" while a character is incomplete, and for special tokens.
        event: what happened to the draft. "accepted": this token is a draft that was accepted. "corrected": a draft was
            rejected, and this token was drawn instead. "bonus": the token after a window of accepted drafts.
            "deferred": the same, drawn from the aligned model. None if nothing was drafted.
        rejected_draft: the id of the rejected draft.
        dropped_drafts: the ids of the drafts after it, which fall with it.
        base_share: the share of the token's probability that came from the base model, in [0, 1]. The rest came from
            the aligned model. None for product rules, and if origins were not asked for.
        deferred_mass: alpha, the mass that the base model hands over at this position. None as above.
        note: what the stream's own `note` said about this token; see `kad.text.streaming.Stream`.
    """

    token: int
    text: str
    event: Event | None = None
    rejected_draft: int | None = None
    dropped_drafts: tuple[int, ...] = ()
    base_share: float | None = None
    deferred_mass: float | None = None
    note: Any = field(default=None, repr=False)


@dataclass(frozen=True, repr=False)
class Answer:
    """The result of one generation.

    Attributes:
        prompt_ids: the prompt's tokens.
        token_ids: the new tokens, an end-of-sequence token included.
        text: their text without special tokens.
        finish_reason: "stop" (end of sequence), "stop_string", "length", "context" (the models' context is full) or
            "interrupted".
        seconds: the time for everything. In a batch, this answer's share of the time.
        first_token: the seconds until the first token. In a batch, the same as `seconds`.
        drafting: whether the aligned model drafted, and why or why not.
        pieces: the tokens one by one. Empty in a batch.
        statistics: the counts of speculation. None without drafts.
        temperature: the temperature of a sampled answer. None for a greedy one.
        seed: the seed of a sampled answer. None for a greedy one.
        context: what each model read before the answer.
    """

    prompt_ids: list[int]
    token_ids: list[int]
    text: str
    finish_reason: str
    seconds: float
    first_token: float
    drafting: Drafting
    pieces: tuple[Piece, ...] = ()
    statistics: SpeculationStatistics | None = None
    temperature: float | None = None
    seed: int | None = None
    context: Context | None = None

    def __repr__(self) -> str:
        share = "" if self.base_share is None else f", {self.base_share:.0%} from the base model"
        return f"Answer({self.text!r}, {counted(len(self.token_ids), 'token')}, {self.finish_reason}{share})"

    def _repr_html_(self) -> str:
        """In a notebook: the text in the colors of its origins; a token of the aligned model is underlined, too."""
        share = self.base_share
        if share is None:
            return f'<div style="white-space: pre-wrap">{escape(self.text)}</div>'
        spans = "".join(
            _span(piece.text, piece.base_share, f"{piece.base_share or 0.0:.0%} from the base model")
            for piece in self.pieces
        )
        models = _span("base model", 1.0), f" {share:.0%}, ", _span("aligned model", 0.0), f" {1 - share:.0%}"
        return f'<div style="white-space: pre-wrap">{spans}</div><small>{"".join(models)}</small>'

    def to_dict(self) -> dict[str, Any]:
        """As JSON: what `kad generate --json` says of it. The shares are None for product rules, and in a batch."""
        base_share = deferred_mass = None
        if self.base_share is not None:
            base_share = _rounded([piece.base_share for piece in self.pieces])
            deferred_mass = _rounded([piece.deferred_mass for piece in self.pieces])
        return {
            "text": self.text,
            "token_ids": self.token_ids,
            "base_share": base_share,
            "aligned_share": base_share and _rounded([1.0 - share for share in base_share]),
            "deferred_mass": deferred_mass,
            "finish_reason": self.finish_reason,
            "prompt_tokens": len(self.prompt_ids),
            "tokens_per_second": self.tokens_per_second,
            "timings": {"first_token": self.first_token, "generate": self.seconds},
            "temperature": self.temperature,
            "seed": self.seed,
            **_speculation(self.drafting, self.statistics),
        }

    @property
    def prompt(self) -> Context | list[int]:
        """What `score_tokens` and `trace_tokens` take as the prompt of this answer."""
        return self.context or self.prompt_ids

    @property
    def finished(self) -> bool:
        """Whether the model ended the text, and not a limit."""
        return self.finish_reason in ("stop", "stop_string")

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second. The time includes reading the prompt."""
        return len(self.token_ids) / self.seconds if self.seconds > 0 else 0.0

    @property
    def base_share(self) -> float | None:
        """The mean share of the base model. None if no token has a share."""
        return _mean([piece.base_share for piece in self.pieces])

    @property
    def deferred_mass(self) -> float | None:
        """The mean deferred mass. None if no token has one."""
        return _mean([piece.deferred_mass for piece in self.pieces])


def answers_at_once(
    tokenizer: Any,
    contexts: Sequence[Context],
    tokens: Sequence[list[int]],
    reasons: Sequence[str],
    seconds: float,
    drafting: Drafting,
    config: GenerationConfig,
    seeds: Sequence[int] | None,
) -> list[Answer]:
    """Answers that came together, in `seconds`. Each has its share of the time."""
    share = seconds / max(len(contexts), 1)
    return [
        Answer(
            prompt_ids=context.ids,
            context=context,
            token_ids=tokens[index],
            text=decode(tokenizer, tokens[index]),
            finish_reason=reasons[index],
            seconds=share,
            first_token=share,
            drafting=drafting,
            temperature=temperature_of(config),
            seed=None if seeds is None else seeds[index],
        )
        for index, context in enumerate(contexts)
    ]


def _rounded(values: Sequence[float | None]) -> list[float]:
    """Rounded to the digits that float32 has."""
    return [round(value, 6) for value in values if value is not None]


def _speculation(drafting: Drafting, counts: SpeculationStatistics | None) -> dict[str, Any]:
    """Whether the aligned model drafted, why or why not, and the counts."""
    plan = {"used": drafting.speculates, "draft_tokens": drafting.draft_tokens, "reason": drafting.reason}
    if counts is None:
        return {"speculation": plan}
    return {"drafted": counts.drafted, "accepted": counts.accepted, "speculation": plan | counts.to_dict()}


def _span(text: str, base_share: float | None, title: str = "") -> str:
    underline = "" if base_share is None or base_share >= 0.5 else "; text-decoration: underline"
    color = "" if base_share is None else f"color: {palette.color(base_share)}"
    return f'<span style="{color}{underline}" title="{title}">{escape(text)}</span>'


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


class LiveAnswer(Iterator[Piece]):
    """An iterator over the pieces of an answer. `answer` is the answer so far, and `stop` ends it early.

    Args:
        pair: the pair.
        context: what each model reads before the answer.
        sampling: how tokens are drawn.
        begun: the first tokens of the answer, if it goes on from there.
        ends: the tokens that end the answer. They replace those of the pair's settings.

    Attributes:
        prompt_ids: the prompt's tokens.
        context: what each model read before the answer.
        drafting: whether the aligned model drafts, and why or why not.
        temperature: the temperature of a sampled answer. None for a greedy one.
        seed: the seed of a sampled answer. None for a greedy one.
        statistics: the counts of speculation.
        stopped: whether `stop` was called.
    """

    drafting: Drafting
    _run: Iterator[Piece]

    def __init__(
        self,
        pair: Pair,
        context: Context,
        sampling: Sampling,
        begun: Sequence[int] = (),
        ends: Sequence[int] | None = None,
    ) -> None:
        space = pair.room(context.longest + len(begun))
        self._config = sampling.apply(pair.generation_config, space, len(context.ids) + len(begun))
        if ends is not None:
            self._config.eos_token_id = list(ends)
        self.context, self.prompt_ids = context, context.ids
        self.seed = sampling.seeded().seed if self._config.do_sample else None
        self.temperature = temperature_of(self._config)
        self.statistics = SpeculationStatistics()
        self.stopped = False
        self._tokenizer = pair.tokenizer
        self._full = "context" if self._config.max_new_tokens == space else "length"
        self._pieces: list[Piece] = []
        self._first_token: float | None = None
        self._seconds = 0.0

    def __next__(self) -> Piece:
        piece = next(self._run)
        self._pieces.append(piece)
        return piece

    def finish(self) -> Answer:
        """Take all remaining pieces and return the whole answer.

        Raises:
            ServerError: the server of a base model went away. The error has what has come of the answer.
        """
        try:
            for _ in self:
                pass
        except ServerError as error:
            error.answer = self.answer
            raise
        return self.answer

    def stop(self) -> None:
        """End the answer after the current piece."""
        self.stopped = True

    @property
    def answer(self) -> Answer:
        """The answer so far: the pieces that have been taken."""
        token_ids = [piece.token for piece in self._pieces]
        return Answer(
            prompt_ids=self.prompt_ids,
            context=self.context,
            token_ids=token_ids,
            text=decode(self._tokenizer, token_ids),
            finish_reason=self._finish_reason(),
            seconds=self._seconds,
            first_token=self._seconds if self._first_token is None else self._first_token,
            drafting=self.drafting,
            pieces=tuple(self._pieces),
            statistics=self.statistics if self.drafting.speculates else None,
            temperature=self.temperature,
            seed=self.seed,
        )

    @abstractmethod
    def _finish_reason(self) -> str:
        """Why the answer ended, or "interrupted"."""

"""What a generation gave: an `Answer`, made of `Piece`s."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kad.speculation.loop import Event
from kad.speculation.statistics import SpeculationStatistics
from kad.text.drafting import Drafting


@dataclass(frozen=True)
class Piece:
    """One token of an answer.

    Attributes:
        token: its id.
        text: what it adds to the text; "" while a character is incomplete, and for special tokens.
        event: "accepted": a draft of the aligned model that stood. "rejected": a draft fell, and this token was drawn
            in its place. "bonus": the token after a whole accepted window. "deferred": the same, handed over to the
            aligned model. None where nothing was drafted.
        rejected: the id of the draft that fell here.
        base_share: which part of the token's probability came from the base model, in [0, 1]; the rest is the aligned
            model's. None for product rules, and where origins were not asked for.
        deferred_mass: alpha, the base model's mass that is handed to the aligned model at this position; None as above.
    """

    token: int
    text: str
    event: Event | None = None
    rejected: int | None = None
    base_share: float | None = None
    deferred_mass: float | None = None


@dataclass(frozen=True)
class Answer:
    """What one generation gave.

    Attributes:
        prompt_ids: the prompt's tokens.
        token_ids: the new tokens, an end-of-sequence token included.
        text: their text without special tokens.
        finish_reason: "stop" (end of sequence), "stop_string", "length", "context" (the models' context is full) or
            "interrupted".
        seconds: for everything; of several prompts at once, this answer's share.
        first_token: seconds until the first token was there; of several prompts at once, as `seconds`.
        drafting: whether the aligned model drafted, and why (not).
        pieces: the tokens one by one; empty for several prompts at once.
        statistics: what speculation counted; None without drafts.
        temperature, seed: what a sampled answer was drawn with; None for greedy ones.
    """

    prompt_ids: list[int]
    token_ids: list[int]
    text: str
    finish_reason: str
    seconds: float
    first_token: float
    drafting: Drafting
    pieces: tuple[Piece, ...] = field(default=(), repr=False)
    statistics: SpeculationStatistics | None = field(default=None, repr=False)
    temperature: float | None = None
    seed: int | None = None

    @property
    def finished(self) -> bool:
        """Whether the model ended the text, and no limit."""
        return self.finish_reason in ("stop", "stop_string")

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second, the reading of the prompt included."""
        return len(self.token_ids) / self.seconds if self.seconds > 0 else 0.0

    @property
    def base_share(self) -> float | None:
        """The mean share of the base model; None where no token has one."""
        return _mean([piece.base_share for piece in self.pieces])

    @property
    def deferred_mass(self) -> float | None:
        """The mean deferred mass; None where no token has one."""
        return _mean([piece.deferred_mass for piece in self.pieces])


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None

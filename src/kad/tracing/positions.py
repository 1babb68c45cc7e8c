"""Positions of a trace: the emitted token, the decision, and the distributions behind it, as plain values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from kad.method.speculation.loop import Event

NOTHING_KEPT = 2.0
"""How a tau of infinity is written: no probability reaches 2, and JSON has no infinity."""


@dataclass(frozen=True)
class Candidate:
    """One token of a position's distributions: its id and its probability under base, aligned and composed model."""

    token: int
    p: float
    p_aligned: float
    pi: float


@dataclass(frozen=True)
class Position:
    """One emitted token and the distributions it came from.

    Attributes:
        token, text: the emitted token and what it adds to the text ("" while a character is incomplete).
        p, p_aligned, pi: its probabilities under base, aligned and composed model.
        base_share, aligned_share: which part of pi came from either; they sum to one. None for product rules.
        kept: k of the emitted token; None for product rules.
        deferred_mass: alpha of the position; None for product rules.
        tau: the threshold on p (`NOTHING_KEPT` for infinity); None where the rule has none.
        acceptance: the probability that a draft from q* is accepted here, sum_v min(pi_v, q*_v).
        floor: every token with p >= floor is among the candidates, by falling p first.
        candidates: the head of p, then the head of q* and of pi as far as not yet listed.
        event: what speculation did. "accepted": the token is a draft that was accepted. "corrected": a draft was
            rejected, and this token was drawn instead. "bonus": the token after a whole accepted window. "deferred": a
            bonus position that p gave up; its token is by definition a draw from q*, so nothing verifies it. None
            without speculation.
        rejected_draft: the draft that was rejected, if one was.
        dropped_drafts: the drafts after it in its window, which are dropped too.
        rank: 1 if no token is more probable under p, 2 if one is, and so on. None if `nobody` could change it.
        entropy: of p, in nats.
        divergence: KL(p || q*) in nats. None if it is infinite.
        overlap: sum_v min(p_v, q*_v). The acceptance if the whole of p were kept.
        nobody: the mass of p that belongs to no token here, and is deferred. There p begins to end its answer in its
            prompt's form, may not end it, or was not followed to one of q*'s tokens; or it is on a server, which names
            its most probable tokens alone. Every p is a lower bound then: it can be larger, by at most this. `entropy`,
            `divergence` and `overlap` are sums over the tokens.
        leaves: where a part of the pair is a pair: which part of pi came from each model, by its path, such as
            "aligned.base". They sum to one. A product of models is one leaf. None without such a part, or shares.
    """

    token: int
    text: str
    p: float
    p_aligned: float
    pi: float
    base_share: float | None
    aligned_share: float | None
    kept: float | None
    deferred_mass: float | None
    tau: float | None
    acceptance: float
    floor: float
    candidates: tuple[Candidate, ...]
    event: Event | None = None
    rejected_draft: int | None = None
    dropped_drafts: tuple[int, ...] = ()
    rank: int | None = None
    entropy: float | None = None
    divergence: float | None = None
    overlap: float | None = None
    nobody: float | None = None
    leaves: dict[str, float] | None = None

    def first(self, model: str) -> Candidate:
        """The first choice of a model, which is `p`, `p_aligned` or `pi`."""
        return max(self.candidates, key=lambda row: float(getattr(row, model)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON. Candidates are rows [token, p, p_aligned, pi]: they are most of a trace."""
        values = asdict(self)
        values["candidates"] = [[row.token, row.p, row.p_aligned, row.pi] for row in self.candidates]
        if self.leaves is None:
            del values["leaves"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Position:
        """The position that `to_dict` wrote. Raises KeyError or TypeError: a missing or unknown field."""
        rows = tuple(Candidate(*row) for row in values["candidates"])
        position = cls(**{**values, "candidates": rows, "dropped_drafts": tuple(values["dropped_drafts"])})
        check_types(position)
        for row in rows:
            check_types(row)
        if not rows:
            raise TypeError("a position without candidates")
        return position

    @property
    def tokens(self) -> set[int]:
        """Every token that it mentions."""
        drafts = {self.token, *self.dropped_drafts, *(row.token for row in self.candidates)}
        return drafts if self.rejected_draft is None else drafts | {self.rejected_draft}


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    events = Literal["accepted", "corrected", "bonus", "deferred"]
    return get_type_hints(kind, localns={"Event": events, "Position": Position})


def check_types(made: Any) -> None:
    """Raise TypeError if a field of a dataclass has another type than it is declared with, or is not finite."""
    kind: Any = type(made)
    for name, hint in _hints(kind).items():
        if not _fits(getattr(made, name), hint):
            raise TypeError(f"{name} is {str(getattr(made, name))[:60]!r}")


def _fits(value: Any, hint: Any) -> bool:
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is Literal:
        return value in parts
    if kind is float:
        return type(value) in (int, float) and abs(value) < math.inf
    if kind is tuple:
        return isinstance(value, tuple) and all(_fits(one, parts[0]) for one in value)
    if kind is dict:
        return isinstance(value, dict) and all(_fits(k, parts[0]) and _fits(v, parts[1]) for k, v in value.items())
    return kind is Any or (type(value) is int if kind is int else isinstance(value, kind))


def summary(positions: Sequence[Position]) -> dict[str, float | int | None]:
    """Counts and means over positions; a mean is None where no position has the value."""
    events = [position.event for position in positions]
    return {
        "tokens": len(positions),
        "mean_deferred_mass": _mean(position.deferred_mass for position in positions),
        "mean_acceptance": _mean(position.acceptance for position in positions),
        "mean_base_share": _mean(position.base_share for position in positions),
        "accepted": events.count("accepted"),
        "corrected": events.count("corrected"),
        "bonus": events.count("bonus"),
        "deferred": events.count("deferred"),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None

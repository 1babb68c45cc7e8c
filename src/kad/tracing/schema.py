"""A trace: what the rule did at every position of one answer, as plain values that go to JSON and back.

The JSON is one object with a `schema`. A reader may rely on every field below. A later version that adds fields keeps
the number of the schema. A version that changes or drops a field raises it, and reads no other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from kad.errors import UsageError

SCHEMA = "kad-trace/3"
NOTHING_KEPT = 2.0
"""How a tau of infinity is written: no probability reaches 2, and JSON has no infinity."""

Event = Literal["accepted", "corrected", "bonus", "deferred"]


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
        dropped_drafts: the drafts after it in its window, which fall with it.
        rank: 1 if no token is more probable under p, 2 if one is, and so on. None if `nobody` could change it.
        entropy: of p, in nats.
        divergence: KL(p || q*) in nats. None if it is infinite.
        overlap: sum_v min(p_v, q*_v). The acceptance if the whole of p were kept.
        nobody: the mass of p that belongs to no token here, and is deferred. There p ends its answer in its prompt's
            form, or was not followed to one of q*'s tokens. Every p is a lower bound then: it can be larger, by at most
            this. `entropy`, `divergence` and `overlap` are sums over the tokens.
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON. Candidates are rows [token, p, p_aligned, pi]: they are most of a trace."""
        values = asdict(self)
        values["candidates"] = [[row.token, row.p, row.p_aligned, row.pi] for row in self.candidates]
        return values


@dataclass(frozen=True)
class Trace:
    """One prompt, one answer, and its positions.

    Attributes:
        rule: the rule as `Rule.to_dict()`; `rule_text` the same as a string, `family` "threshold", "cascade" or
            "product".
        models: role -> where the model came from.
        generation: how the answer was made: {"source": "generated" or "given", ...sampling and speculation settings}.
            "asked" holds the question as it was given, if it was given in words: {"prompt", "pair", "system", ...}.
        prompt: the prompt as text, special tokens included.
        base_prompt: the base model's own prompt, if it has one.
        vocabulary: the text of every token that the positions mention.
    """

    rule: dict[str, Any]
    rule_text: str
    family: str
    models: dict[str, str]
    generation: dict[str, Any]
    deferral_temperature: float
    prompt: str
    vocabulary: dict[int, str]
    positions: tuple[Position, ...]
    kad_version: str
    base_prompt: str | None = None
    schema: str = field(default=SCHEMA)

    @property
    def text(self) -> str:
        """The answer."""
        return "".join(position.text for position in self.positions)

    def summary(self) -> dict[str, float | int | None]:
        """Counts and means over the positions; a mean is None where no position has the value."""
        events = [position.event for position in self.positions]
        return {
            "tokens": len(self.positions),
            "mean_deferred_mass": _mean(position.deferred_mass for position in self.positions),
            "mean_acceptance": _mean(position.acceptance for position in self.positions),
            "mean_base_share": _mean(position.base_share for position in self.positions),
            "accepted": events.count("accepted"),
            "corrected": events.count("corrected"),
            "bonus": events.count("bonus"),
            "deferred": events.count("deferred"),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["vocabulary"] = {str(token): text for token, text in self.vocabulary.items()}
        values["positions"] = [position.to_dict() for position in self.positions]
        return {"schema": values.pop("schema"), **values, "summary": self.summary()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Trace:
        """The trace that `to_dict` wrote.

        Raises:
            UsageError: another schema, or a missing or unknown field.
        """
        if values.get("schema") != SCHEMA:
            raise UsageError(
                f"This is no trace that this version reads: schema {values.get('schema')!r}, but {SCHEMA!r} is wanted. "
                "Make it again with kad trace."
            )
        known = {key: value for key, value in values.items() if key != "summary"}
        try:
            known["vocabulary"] = {int(token): text for token, text in known["vocabulary"].items()}
            known["positions"] = tuple(_position_from_dict(position) for position in known["positions"])
            return cls(**known)
        except (KeyError, TypeError) as error:
            raise UsageError(f"This trace is damaged ({error}). Make it again with kad trace.") from error

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """The trace that `to_json` wrote. Raises UsageError: no JSON, or as `from_dict`."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise UsageError(f"This is no trace: not JSON ({error}).") from error
        return cls.from_dict(values if isinstance(values, dict) else {})

    def to_html(self, beside: Trace | None = None) -> str:
        """The trace as one self-contained page, with another trace beside it if one is given."""
        from kad.tracing.page import trace_page

        return trace_page(self) if beside is None else trace_page(self, beside)

    def save(self, path: Path | str, *, beside: Trace | None = None) -> Path:
        """Write the page (`.html`) or the JSON (`.json`).

        Args:
            path: the file.
            beside: a second trace, shown beside this one. Only a page has room for it.

        Raises:
            UsageError: another suffix, or `beside` with JSON.
        """
        path = Path(path)
        if path.suffix.lower() not in (".html", ".json"):
            raise UsageError(f"A trace is written as .html or .json, not {path.name!r}.")
        if path.suffix.lower() == ".html":
            text = self.to_html(beside)
        elif beside is None:
            text = self.to_json()
        else:
            raise UsageError("Two traces side by side are a page: give a name that ends with .html.")
        path.write_text(text, encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        from kad.tracing.page import notebook_frame

        return notebook_frame(self)

    def __rich__(self) -> Any:
        from kad.tracing.terminal import render

        return render(self)


def _position_from_dict(values: Mapping[str, Any]) -> Position:
    rows = tuple(Candidate(*row) for row in values["candidates"])
    return Position(**{**values, "candidates": rows, "dropped_drafts": tuple(values["dropped_drafts"])})


def _mean(values: Any) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None

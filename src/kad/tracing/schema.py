"""A trace: what the rule did at every position of one answer, as plain values that go to JSON and back.

The JSON is one object with a `schema`. A reader may rely on every field below. A later version that adds fields keeps
the number of the schema. A version that changes or drops a field raises it, and reads no other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kad.disk import write_atomically
from kad.errors import UsageError
from kad.tracing import page, terminal
from kad.tracing.positions import Position, check_types, summary
from kad.words import counted

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA = "kad-trace/3"


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        return f"Trace({self.text!r}, {counted(len(self.positions), 'token')}, {self.rule_text})"

    @property
    def text(self) -> str:
        """The answer."""
        return "".join(position.text for position in self.positions)

    @property
    def ended_by(self) -> str | None:
        """Whose end token it was, by the larger share: "base" or "aligned". None without an end token, or shares."""
        share = self.positions[-1].base_share
        if share is None or self.generation.get("finish_reason") != "stop":
            return None
        return "base" if share > 0.5 else "aligned"

    def summary(self) -> dict[str, float | int | None]:
        """Counts and means over the positions; a mean is None where no position has the value."""
        return summary(self.positions)

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
            known["positions"] = tuple(Position.from_dict(position) for position in known["positions"])
            trace = cls(**known)
            check_types(trace)
            if not trace.positions or not set().union(*(p.tokens for p in trace.positions)) <= trace.vocabulary.keys():
                raise TypeError("it has no positions, or tokens without a text")
            return trace
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"This trace is damaged ({error}). Make it again with kad trace.") from error

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """The trace that `to_json` wrote. Raises UsageError: no JSON, or as `from_dict`."""
        try:
            values = json.loads(text, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"This is no trace: not JSON ({error}).") from error
        return cls.from_dict(values if isinstance(values, dict) else {})

    def to_html(self, beside: Trace | None = None) -> str:
        """The trace as one self-contained page, with another trace beside it if one is given."""
        traces = [self] if beside is None else [self, beside]
        title = " · ".join(["kad trace", *dict.fromkeys(trace.rule_text for trace in traces)])
        return page.trace_page(title, [trace.to_json() for trace in traces])

    def in_terminal(self, every_position: bool = False) -> RenderableType:
        """The trace for `rich.print`; see `kad.tracing.terminal.render`."""
        return terminal.render(self.rule_text, self.positions, self.vocabulary, every_position, self.ended_by)

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
        write_atomically(path, text)
        return path

    def _repr_html_(self) -> str:
        return page.notebook_frame(self.to_html())

    def __rich__(self) -> RenderableType:
        return self.in_terminal()

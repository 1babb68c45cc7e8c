"""Methods, as `--methods` names them: one model alone, or a rule over the pair, with or without speculation.

    base[=MODEL] | aligned | reference | oracle=MODEL | pair | RULE | ...@speculative[:num_draft_tokens=8,draft=aligned]

`base` is the big base model alone. With `=MODEL` that model's chat template asks it, and only its own end tokens end
its answers. `oracle=MODEL` is a big aligned model given for comparison, `pair` the pair under its own rule, RULE any
rule's string such as "dual:threshold=0.4". `draft` is the model that proposes: `aligned` (q*) or `reference` (q).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches

from kad.errors import RuleError, UsageError
from kad.method.defaults import PUBLISHED_DRAFT_TOKENS
from kad.method.rules import Rule, parse_rule

ALONE = ("base", "aligned", "reference")


@dataclass(frozen=True)
class Speculation:
    """How a rule is decoded speculatively; `num_draft_tokens` is a count or "auto"."""

    num_draft_tokens: int | str = PUBLISHED_DRAFT_TOKENS
    draft: str = "aligned"

    def __post_init__(self) -> None:
        count = self.num_draft_tokens
        if count != "auto" and not (isinstance(count, int) and count > 0):
            raise UsageError(f"num_draft_tokens is a positive number or auto, but got {count!r}.")
        if self.draft not in ("aligned", "reference"):
            raise UsageError(f"draft is aligned or reference, but got {self.draft!r}.")

    def __str__(self) -> str:
        values = [(field, getattr(self, field.name)) for field in fields(self)]
        options = [f"{field.name}={value}" for field, value in values if value != field.default]
        return f"speculative:{','.join(options)}" if options else "speculative"


@dataclass(frozen=True)
class Method:
    """One way to answer. Equal methods have equal names, and `parse_method(name)` returns the method.

    Attributes:
        role: base, aligned, reference, oracle, pair (the pair's own rule) or composed (any other rule).
        rule: the rule of pair and composed.
        model: what stands behind "=": the oracle, or the model whose chat template asks the base model.
        speculation: how a composition is decoded speculatively; None decodes plainly.
    """

    role: str
    rule: Rule | None = None
    model: str | None = None
    speculation: Speculation | None = None

    @property
    def name(self) -> str:
        """The method as `--methods` writes it."""
        if self.model is not None:
            return f"{self.role}={self.model}"
        head = str(self.rule) if self.role == "composed" else self.role
        return head if self.speculation is None else f"{head}@{self.speculation}"

    @property
    def by_template(self) -> bool:
        """Whether the base model is asked by the chat template of another model, and ended by its own tokens alone."""
        return self.role == "base" and self.model is not None

    @property
    def needs(self) -> frozenset[str]:
        """The models that this method runs: base, aligned, reference, or an oracle by the method's own name."""
        if self.rule is None:
            return frozenset({self.name if self.role == "oracle" else self.role})
        drafts = "aligned" if self.speculation is None else self.speculation.draft
        return frozenset({"base", "aligned", drafts} | ({"reference"} if self.rule.needs_reference else set()))


def parse_method(text: str, pair: Rule | None = None) -> Method:
    """One method from its name; `pair` is the rule for which that name stands.

    Raises:
        UsageError: a name that is no method, or speculation that the method cannot do.
        RuleError: a rule that does not exist or a parameter out of its range.
    """
    # After the @ of a model comes a revision, not a way of decoding.
    head, at, tail = (text.strip(), "", "") if _names_model(text) else text.strip().partition("@")
    method = _parse_head(head.strip(), pair)
    if not at:
        return method
    speculation = _parse_speculation(tail.strip())
    if method.rule is None:
        raise UsageError(
            f"{method.name} runs one model alone, which has no drafts. Leave out what stands behind @ in {text!r}."
        )
    return replace(method, speculation=speculation)


def parse_methods(text: str, pair: Rule | None = None) -> list[Method]:
    """Methods separated by ";"; see `parse_method`.

    Raises:
        UsageError: none, or one twice.
    """
    methods = [parse_method(part, pair) for part in text.split(";") if part.strip()]
    names = [method.name for method in methods]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if not methods or repeated:
        raise UsageError(
            f"--methods needs one method or more, each once, separated by ';', but got {repeated or text!r}."
        )
    return methods


def execution_order(methods: Sequence[Method]) -> list[Method]:
    """The order that keeps the fewest models in memory: oracles run first and are gone when the pair is loaded."""
    return sorted(methods, key=lambda method: method.role != "oracle")


def window_of(name: str) -> int | None:
    """The drafts per window of the method with this name; None if it has none, or no fixed number."""
    _, at, speculation = name.partition("@")
    if _names_model(name):
        return None
    count = _parse_speculation(speculation).num_draft_tokens if at else None
    return count if isinstance(count, int) else None


def _names_model(text: str) -> bool:
    head, equals, _ = text.partition("=")
    return head.strip() == "oracle" or (head.strip() == "base" and bool(equals))


def _parse_head(head: str, pair: Rule | None) -> Method:
    if head in ALONE:
        return Method(head)
    if head == "pair":
        if pair is None:
            raise UsageError("The method pair needs a pair, for it stands for the pair's own rule. Give --pair.")
        return Method("pair", pair)
    if _names_model(head):
        role, _, model = (part.strip() for part in head.partition("="))
        if not model:
            raise UsageError(f"The method {role} needs a model: {role}=HUB_ID or {role}=PATH.")
        return Method(role, model=model)
    try:
        return Method("composed", parse_rule(head))
    except RuleError as error:
        close = get_close_matches(head, (*ALONE, "pair", "oracle"), n=1, cutoff=0.7)
        raise RuleError(f"{error} Did you mean the method {close[0]}?" if close else str(error)) from None


def _parse_speculation(text: str) -> Speculation:
    name, _, rest = text.partition(":")
    if name != "speculative":
        raise UsageError(f"Behind @ stands speculative[:num_draft_tokens=N,draft=aligned|reference], but got {text!r}.")
    known = [field.name for field in fields(Speculation)]
    options: dict[str, int | str] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in known:
            raise UsageError(f"Speculative decoding has no option {key!r}. Choose from: {', '.join(known)}.")
        options[key] = int(value) if key == "num_draft_tokens" and value.removeprefix("-").isdecimal() else value
    return Speculation(**options)  # type: ignore[arg-type]

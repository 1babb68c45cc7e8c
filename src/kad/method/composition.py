"""The composed distribution pi: log pi, deferred mass, acceptance, origin. Pure tensors.

Cascades: pi_v = k_v p_v + alpha q*_v with alpha = sum_v (1 - k_v) p_v. Products: pi_v ∝ exp(rule.combine(...)_v).
See docs/method.md for the identities; everything here is per row, so no row depends on another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kad.errors import RuleError, VocabularyError
from kad.method import kernels
from kad.method.composed import NAMES, Composed
from kad.method.distribution import Distribution, may_look, raised, row_blocks
from kad.method.nobody import without_foreign
from kad.method.rules import CascadeRule, RowRules, Rule, ThresholdRule, parse_rule


@dataclass(frozen=True)
class Composition:
    """How the models are composed: the rule, and the temperature at which deferral is decided.

    Attributes:
        rule: a rule; its string or its dict is parsed.
        deferral_temperature: the models' logits are divided by it *before* composing; 1 in the papers' runs.
        nobody: whether rows of the base model have one more entry, the last: mass that belongs to no token, which a
            cascade always defers (see `kad.method.nobody`).
        foreign: the tokens that mean something else to the aligned model (see `kad.tokens.vocabulary`). The base
            model's mass on them is always deferred; products give them no probability.

    Raises:
        RuleError: a bad rule, or a temperature that is not a positive number.
    """

    rule: Rule
    deferral_temperature: float = 1.0
    nobody: bool = False
    foreign: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.rule, Rule):
            object.__setattr__(self, "rule", parse_rule(self.rule))
        given = self.deferral_temperature
        if isinstance(given, bool) or not isinstance(given, int | float) or not 0.0 < given < float("inf"):
            raise RuleError(f"deferral_temperature must be a positive number, but is {given!r}.")
        object.__setattr__(self, "deferral_temperature", float(given))

    @classmethod
    def of(cls, given: RuleLike, deferral_temperature: float | None = None) -> Composition:
        """A composition from whatever names one: itself, a rule, a rule's string or dict.

        Args:
            given: what to compose by.
            deferral_temperature: replaces that of `given`.
        """
        if not isinstance(given, Composition):
            return cls(given, 1.0 if deferral_temperature is None else deferral_temperature)  # type: ignore[arg-type]
        return given if deferral_temperature is None else replace(given, deferral_temperature=deferral_temperature)


# What every public function accepts where it asks for a rule.
RuleLike = Rule | str | Mapping[str, Any] | Composition


def compose(
    rule: RuleLike,
    base_logits: Tensor,
    aligned_logits: Tensor,
    reference_logits: Tensor | None = None,
    *,
    deferral_temperature: float | None = None,
    check: bool = True,
) -> Tensor:
    """The log-probabilities of the composed model, log pi.

    Args:
        rule: the rule ("dual:threshold=0.4", a dict, a `Rule`), or a `Composition`, which has its temperature too.
        base_logits: (..., vocab), logits or log-probabilities of the base model p; any float dtype, -inf allowed.
        aligned_logits: the same shape, the aligned model q*.
        reference_logits: the same shape, the reference model q; needed by product rules, unused by cascades.
        deferral_temperature: short for `Composition(rule, deferral_temperature)`.
        check: whether a bad row is an error on a CPU; False leaves it NaN, as on other devices.

    Returns:
        (..., vocab), float32 (float64 if an input is), normalized. A token that pi excludes, but p or q* allows, stands
        10,000 below the others: its probability is zero, and a mask that leaves nothing else finds an order.

    Raises:
        LogitsError: NaN, +inf or a row of only -inf. Elsewhere than on a CPU nothing is looked at: such rows are NaN,
            and `raise_if_bad` says why.
        VocabularyError: shapes that differ.
        RuleError: a bad rule, one that needs the reference model without it, or a deferral temperature that is not
            positive.
    """
    composition = Composition.of(rule, deferral_temperature)
    models = base_logits, aligned_logits
    if not composition.nobody and not composition.foreign and kernels.takes(composition.rule, *models):
        flat = (logits.reshape(-1, logits.shape[-1]) for logits in models)
        found = kernels.compose_rows(composition.rule, *flat, deferral_temperature=composition.deferral_temperature)
        return found.reshape(base_logits.shape)
    return _by_row(Composed.log_pi, composition, base_logits, aligned_logits, reference_logits, check=check)


def deferred_mass(rule: RuleLike, base_logits: Tensor, aligned_logits: Tensor) -> Tensor:
    """alpha = sum_v (1 - k_v) p_v, the mass that p hands over to q*: (..., vocab) -> (...,). Cascades only.

    Raises:
        RuleError: `rule` is a product, which defers nothing. Else as `compose`.
    """

    def alpha(rows: Composed) -> Tensor:
        return rows.cascade()[1].unsqueeze(-1)

    return _by_row(alpha, _cascade(rule, "a deferred mass"), base_logits, aligned_logits).squeeze(-1)


def acceptance(
    rule: RuleLike, base_logits: Tensor, aligned_logits: Tensor, reference_logits: Tensor | None = None
) -> Tensor:
    """beta = sum_v min(pi_v, q*_v) = 1 - TV(pi, q*), the expected acceptance of a draft from q*: (...,).

    q* is the aligned model at the deferral temperature, which is what drafts are drawn from. Source: Leviathan et al.
    2023, with pi as the target. For cascades beta >= alpha. Arguments and errors as `compose`.
    """

    def beta(rows: Composed) -> Tensor:
        return torch.minimum(rows.log_pi(), rows.aligned.log_probs()).exp().sum(dim=-1, keepdim=True)

    return _by_row(beta, Composition.of(rule), base_logits, aligned_logits, reference_logits).squeeze(-1)


def origin_shares(rule: RuleLike, base_logits: Tensor, aligned_logits: Tensor) -> tuple[Tensor, Tensor]:
    """How much of pi_v comes from p and how much from q*: (k_v p_v / pi_v, alpha q*_v / pi_v), each (..., vocab).

    The two sum to one. A token with pi_v = 0 counts as deferred: (0, 1). Cascades only.
    """
    cascade = _cascade(rule, "origin shares")
    shares = _by_row(lambda rows: rows.from_base()[0], cascade, base_logits, aligned_logits)
    return shares, 1.0 - shares


def raise_if_bad(
    log_pi: Tensor,
    rule: RuleLike,
    base_logits: Tensor,
    aligned_logits: Tensor,
    reference_logits: Tensor | None = None,
) -> None:
    """Look at log pi (waiting for the device), and raise the error that `compose` raises on a CPU for a bad row.

    Args:
        log_pi: (..., vocab), what `compose` gave for the other arguments.
    """
    if bool(log_pi[..., :1].isnan().any()):
        composed(Composition.of(rule), base_logits, aligned_logits, reference_logits).explain()


def composed(
    composition: Composition, base_logits: Tensor, aligned_logits: Tensor, reference_logits: Tensor | None = None
) -> Composed:
    """What `compose` works on: all rows at once, and nothing looked at. Arguments as `compose`."""
    given = _inputs(composition, base_logits, aligned_logits, reference_logits)
    # A CPU works with p itself where it can. All models in one arithmetic: a tie must be one.
    few = isinstance(composition.rule, ThresholdRule) and may_look(given[0])
    normalize = Distribution.in_probabilities if few else Distribution.of
    others = (normalize(tempered(composition, logits)) for logits in given[1:])
    return with_base(composition, given[0], *others, normalize=normalize)


def with_base(
    composition: Composition,
    base_logits: Tensor,
    aligned: Distribution,
    reference: Distribution | None = None,
    *,
    normalize: Callable[[Tensor], Distribution] = Distribution.in_probabilities,
) -> Composed:
    """The models at the same positions: p from its logits, q* and q as they are."""
    vocab = base_logits.shape[-1] - composition.nobody
    own = without_foreign(base_logits, vocab, composition.foreign, composition.deferral_temperature)
    base, rest = normalize(tempered(composition, own)), None
    if composition.nobody or composition.foreign:
        base, rest = base.without_last()
    return Composed(composition.rule, base, aligned, reference, rest)


def tempered(composition: Composition, logits: Tensor) -> Tensor:
    """Logits over the deferral temperature."""
    temperature = composition.deferral_temperature
    return logits if temperature == 1.0 else logits / temperature


def models_of(rows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    """The rows of base, aligned and reference model, as `compose` takes them. A single model is base and aligned."""
    aligned = rows["aligned"]
    return rows.get("base", aligned), aligned, rows.get("reference")


def _cascade(rule: RuleLike, what: str) -> Composition:
    composition = Composition.of(rule)
    if not isinstance(composition.rule, CascadeRule):
        raise RuleError(f"Only cascades have {what}; {composition.rule} is not one.")
    return composition


def _by_row(
    quantity: Callable[[Composed], Tensor],
    composition: Composition,
    base_logits: Tensor,
    aligned_logits: Tensor,
    reference_logits: Tensor | None = None,
    *,
    check: bool = True,
) -> Tensor:
    """A quantity (rows, n) of every row, as (..., n); on a CPU a few rows at a time, and bad rows are an error."""
    given = _inputs(composition, base_logits, aligned_logits, reference_logits)
    flat = [logits.reshape(-1, logits.shape[-1]) for logits in given]
    parts = []
    for block in row_blocks(flat[0]):
        rule = composition.rule[block] if isinstance(composition.rule, RowRules) else composition.rule
        here = replace(composition, rule=rule)
        parts.append(quantity(composed(here, *(logits[block] for logits in flat))))
    rows = parts[0] if len(parts) == 1 else torch.cat(parts)
    if check and may_look(rows):
        raise_if_bad(rows, composition, base_logits, aligned_logits, reference_logits)
    return rows.reshape(*given[1].shape[:-1], rows.shape[-1])


def _inputs(composition: Composition, base: Tensor, aligned: Tensor, reference: Tensor | None) -> list[Tensor]:
    """The logits that the rule needs, of one shape and one dtype, float32 at least."""
    rule = composition.rule
    if rule.needs_reference and reference is None:
        raise RuleError(f"Rule {rule} needs the reference model's logits (reference_logits), but got none.")
    models = [base, aligned, *([reference] if rule.needs_reference and reference is not None else [])]
    given = [raised(logits, name) for name, logits in zip(NAMES, models, strict=False)]
    shapes = [tuple(logits.shape) for logits in given]
    if composition.nobody:
        shapes[0] = (*shapes[0][:-1], shapes[0][-1] - 1)
    if len(set(shapes)) > 1:
        shown = ", ".join(f"{name} {tuple(logits.shape)}" for name, logits in zip(NAMES, given, strict=False))
        raise VocabularyError(
            f"The models' logits must have one shape (..., vocab), but are: {shown}. "
            "Trim padded vocabularies to the common size first (kad.tokens.vocabulary.trim)."
        )
    dtype = torch.float64 if any(logits.dtype == torch.float64 for logits in given) else torch.float32
    return [logits.to(dtype) for logits in given]

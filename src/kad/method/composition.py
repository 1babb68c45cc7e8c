"""The composed distribution pi: log pi, deferred mass, acceptance, origin. Pure tensors.

Cascades: pi_v = k_v p_v + alpha q*_v with alpha = sum_v (1 - k_v) p_v. Products: pi_v ∝ exp(rule.combine(...)_v).
See docs/method.md for the identities; everything here is per row, so no row depends on another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from kad.errors import LogitsError, RuleError, VocabularyError
from kad.method import kernels
from kad.method.composed import Composed, asked, check_takes_lists
from kad.method.defaults import COLDEST, HOTTEST
from kad.method.distribution import (
    NOT_AT_ONE,
    AnyRows,
    Distribution,
    Rows,
    at_temperature,
    each,
    may_look,
    raised,
    raised_rows,
    refuse,
    row_blocks,
)
from kad.method.rules import CascadeRule, ProductRule, RowRules, Rule, ThresholdRule, parse_rule

_NAMES = ("base_logits", "aligned_logits", "reference_logits")


@dataclass(frozen=True)
class Composition:
    """How the models are composed: the rule, and the temperature at which deferral is decided.

    Attributes:
        rule: a rule; its string or its dict is parsed.
        deferral_temperature: every model's logits are divided by it *before* composing. The papers' temperature is this
            one, with a temperature of 1 on log pi.

    Raises:
        RuleError: a bad rule, or a temperature that is no number from 0.01 to 1000.
    """

    rule: Rule
    deferral_temperature: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.rule, Rule):
            object.__setattr__(self, "rule", parse_rule(self.rule))
        value = self.deferral_temperature
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not COLDEST <= value <= HOTTEST:
            raise RuleError(f"deferral_temperature must be a number from {COLDEST} to {HOTTEST}, but is {value!r}.")
        object.__setattr__(self, "deferral_temperature", float(value))

    @classmethod
    def of(cls, rule: RuleLike, deferral_temperature: float | None = None) -> Composition:
        """A composition from whatever names one: itself, a rule, a rule's string or dict.

        Args:
            rule: what to compose by.
            deferral_temperature: replaces that of `rule`.
        """
        if not isinstance(rule, Composition):
            return cls(rule, 1.0 if deferral_temperature is None else deferral_temperature)  # type: ignore[arg-type]
        return rule if deferral_temperature is None else replace(rule, deferral_temperature=deferral_temperature)


# What every public function accepts where it asks for a rule.
RuleLike = Rule | str | Mapping[str, Any] | Composition


def compose(
    rule: RuleLike,
    base_logits: Rows,
    aligned_logits: Tensor,
    reference_logits: Tensor | None = None,
    *,
    deferral_temperature: float | None = None,
    check: bool = True,
) -> Tensor:
    """The log-probabilities of the composed model, log pi.

    Args:
        rule: the rule ("dual:threshold=0.4", a dict, a `Rule`), or a `Composition`, which has its temperature too.
        base_logits: (..., vocab), logits or log-probabilities of the base model p; any float dtype, -inf allowed. They
            may be `RowsWithRest`.
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
    if isinstance(base_logits, Tensor) and kernels.takes(composition.rule, base_logits, aligned_logits):
        flat = _flat(base_logits), _flat(aligned_logits)
        log_pi = kernels.compose_rows(composition.rule, *flat, deferral_temperature=composition.deferral_temperature)
        return log_pi.reshape(base_logits.shape)
    return _by_row(Composed.log_pi, composition, base_logits, aligned_logits, reference_logits, check=check)


def deferred_mass(rule: RuleLike, base_logits: Rows, aligned_logits: Tensor) -> Tensor:
    """alpha = sum_v (1 - k_v) p_v, the mass that p hands over to q*: (..., vocab) -> (...,). Cascades only.

    Raises:
        RuleError: `rule` is a product, which defers nothing. Else as `compose`.
    """

    def alpha(rows: Composed) -> Tensor:
        return rows.cascade()[1].unsqueeze(-1)

    return _by_row(alpha, _cascade(rule, "a deferred mass"), base_logits, aligned_logits).squeeze(-1)


def acceptance(
    rule: RuleLike, base_logits: Rows, aligned_logits: Tensor, reference_logits: Tensor | None = None
) -> Tensor:
    """beta = sum_v min(pi_v, q*_v) = 1 - TV(pi, q*), the expected acceptance of a draft from q*: (...,).

    q* is the aligned model at the deferral temperature, which is what drafts are drawn from. Source: Leviathan et al.
    2023, with pi as the target. For cascades beta >= alpha. Arguments and errors as `compose`.
    """

    def beta(rows: Composed) -> Tensor:
        return torch.minimum(rows.log_pi(), rows.aligned.log_probs()).exp().sum(dim=-1, keepdim=True)

    return _by_row(beta, Composition.of(rule), base_logits, aligned_logits, reference_logits).squeeze(-1)


def origin_shares(rule: RuleLike, base_logits: Rows, aligned_logits: Tensor) -> tuple[Tensor, Tensor]:
    """How much of pi_v comes from p and how much from q*: (k_v p_v / pi_v, alpha q*_v / pi_v), each (..., vocab).

    The two sum to one. A token with pi_v = 0 counts as deferred: (0, 1). Cascades only.
    """
    cascade = _cascade(rule, "origin shares")
    shares = _by_row(lambda rows: rows.from_base()[0], cascade, base_logits, aligned_logits)
    return shares, 1.0 - shares


def raise_if_bad(
    log_pi: Tensor,
    rule: RuleLike,
    base_logits: Rows,
    aligned_logits: Tensor,
    reference_logits: Tensor | None = None,
) -> None:
    """Look at log pi (waiting for the device), and raise the error that `compose` raises on a CPU for a bad row.

    Args:
        log_pi: (..., vocab), what `compose` gave for the other arguments.
    """
    if not bool(log_pi[..., :1].isnan().any()):
        return
    composition = Composition.of(rule)
    base, others = _inputs(composition, base_logits, aligned_logits, reference_logits)
    for name, rows in zip(_NAMES, (base, *others), strict=False):
        refuse(name, rows)
    models = composed(composition, base, *others)
    if models.lacking is not None:
        raise RuleError(models.lacking)
    if isinstance(models.rule, CascadeRule):
        log_p = models.base.log_probs()
        keep = asked(models.rule, "keep", log_p.shape, log_p, models.aligned.log_probs())
        if not bool(((keep >= 0.0) & (keep <= 1.0)).all()):
            raise RuleError(
                f"The keep probabilities of rule {models.rule} must lie in [0, 1], but lie between "
                f"{float(keep.min()):g} and {float(keep.max()):g}: mend the rule's keep()."
            )
    if isinstance(models.rule, ProductRule):
        refuse(f"the product of the models' probabilities under {models.rule}", models.product())
    raise LogitsError(f"Rule {models.rule} makes NaN of these logits. Choose another rule or other parameters.")


def composed(
    composition: Composition, base_logits: Rows, aligned_logits: Tensor, reference_logits: Tensor | None = None
) -> Composed:
    """What `compose` works on: all rows at once, and nothing looked at. Arguments as `compose`."""
    base, others = _inputs(composition, base_logits, aligned_logits, reference_logits)
    # A CPU works with p itself where it can. All models in one arithmetic: a tie must be one.
    few = isinstance(composition.rule, ThresholdRule) and may_look(others[0])
    normalize = Distribution.in_probabilities if few else Distribution.of
    return Composed(composition.rule, *(normalize(tempered(composition, rows)) for rows in (base, *others)))


def tempered(composition: Composition, rows: AnyRows) -> AnyRows:
    """Logits over the deferral temperature, see `at_temperature`."""
    return at_temperature(rows, composition.deferral_temperature)


def in_order(rows: Mapping[str, Rows]) -> tuple[Rows, Tensor, Tensor | None]:
    """Rows by role in the order in which `compose` takes them: base, aligned, and the reference if it is there.

    A single model is base and aligned.
    """
    aligned = cast("Tensor", rows["aligned"])
    return rows.get("base", aligned), aligned, cast("Tensor | None", rows.get("reference"))


def refuse_lists(composition: Composition) -> None:
    """Refuse what cannot be composed of the most probable tokens of p.

    Raises:
        RuleError: a rule that needs all of p, or a deferral temperature other than that of a server, which is 1.
    """
    check_takes_lists(composition.rule)
    if composition.deferral_temperature != 1.0:
        raise RuleError(NOT_AT_ONE.format(composition.deferral_temperature))


def check_shapes(*rows: Rows) -> None:
    """Refuse rows of base, aligned and reference model that have not one shape.

    Raises:
        VocabularyError: their shapes differ. The shape of rows with a rest is that of their tokens.
    """
    if len({tuple(one.shape) for one in rows}) > 1:
        shapes = ", ".join(f"{name} {tuple(one.shape)}" for name, one in zip(_NAMES, rows, strict=False))
        raise VocabularyError(
            f"The models' logits must have one shape (..., vocab), but are: {shapes}. "
            "Trim padded vocabularies to the common size first (kad.tokens.vocabulary.trim)."
        )


def _cascade(rule: RuleLike, what: str) -> Composition:
    composition = Composition.of(rule)
    if not isinstance(composition.rule, CascadeRule):
        raise RuleError(f"Only cascades have {what}; {composition.rule} is not one.")
    return composition


def _by_row(
    quantity: Callable[[Composed], Tensor],
    composition: Composition,
    base_logits: Rows,
    aligned_logits: Tensor,
    reference_logits: Tensor | None = None,
    *,
    check: bool = True,
) -> Tensor:
    """A quantity (rows, n) of every row, as (..., n); on a CPU a few rows at a time, and bad rows are an error."""
    base, others = _inputs(composition, base_logits, aligned_logits, reference_logits)
    base, flat = each(base, _flat), [_flat(rows) for rows in others]
    parts = []
    for block in row_blocks(flat[0]):
        rule = composition.rule[block] if isinstance(composition.rule, RowRules) else composition.rule
        here = replace(composition, rule=rule)
        parts.append(quantity(composed(here, base[block], *(rows[block] for rows in flat))))
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    if check and may_look(whole):
        raise_if_bad(whole, composition, base_logits, aligned_logits, reference_logits)
    return whole.reshape(*others[0].shape[:-1], whole.shape[-1])


def _inputs(
    composition: Composition, base: Rows, aligned: Tensor, reference: Tensor | None
) -> tuple[Rows, list[Tensor]]:
    """The logits of p, and those of the other models that the rule needs: one shape and one dtype, float32 at least."""
    rule = composition.rule
    if rule.needs_reference and reference is None:
        raise RuleError(f"Rule {rule} needs the reference model's logits (reference_logits), but got none.")
    base, others = raised_rows(base, _NAMES[0]), [raised(aligned, _NAMES[1])]
    if rule.needs_reference and reference is not None:
        others.append(raised(reference, _NAMES[2]))
    check_shapes(base, *others)
    dtypes = {rows.dtype for rows in (base, *others)}
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    return base.to(dtype), [rows.to(dtype) for rows in others]


def _flat(rows: Tensor) -> Tensor:
    return rows.reshape(-1, rows.shape[-1])

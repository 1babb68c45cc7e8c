"""The composed distribution pi: log pi, deferred mass, acceptance, kept tokens, residual, origin. Pure tensors.

Cascades: pi_v = k_v p_v + alpha q*_v with alpha = sum_v (1 - k_v) p_v. Products: pi_v ∝ exp(rule.combine(...)_v).
See docs/method.md for the identities; everything here is per row, so no row depends on another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kad.distribution import Distribution, log_probabilities, raised
from kad.errors import RuleError, VocabularyError
from kad.rules import CascadeRule, ProductRule, Rule, ThresholdRule, parse_rule


@dataclass(frozen=True)
class Composition:
    """How the models are composed: the rule, and the temperature at which deferral is decided.

    Attributes:
        rule: a rule; its string or its dict is parsed.
        deferral_temperature: the models' logits are divided by it *before* composing; 1 in the papers' runs.

    Raises:
        RuleError: a bad rule, or a temperature that is not a positive number.
    """

    rule: Rule
    deferral_temperature: float = 1.0

    def __post_init__(self) -> None:
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
            return cls(parse_rule(given), 1.0 if deferral_temperature is None else deferral_temperature)
        return given if deferral_temperature is None else cls(given.rule, deferral_temperature)


# What every public function accepts where it asks for a rule.
RuleLike = Rule | str | Mapping[str, Any] | Composition


@dataclass(frozen=True)
class Kept:
    """The kept tokens of a threshold rule, over flattened rows: n entries in rising order of rows.

    Attributes:
        row: (n,), index into the flattened rows.
        token: (n,), token id.
        log_p: (n,), log-probability under the base model.
        log_aligned: (n,), log-probability under the aligned model.
        alpha: (rows,), the deferred mass of each row: the mass outside its kept tokens.
    """

    row: Tensor
    token: Tensor
    log_p: Tensor
    log_aligned: Tensor
    alpha: Tensor


@dataclass(frozen=True)
class Residual:
    """max(pi - q*, 0) on its support, which the kept tokens contain; entries as in `Kept`.

    Attributes:
        row: (n,), index into the flattened rows.
        token: (n,), token id.
        weight: (n,), unnormalised probability, >= 0.
    """

    row: Tensor
    token: Tensor
    weight: Tensor


def compose(
    rule: RuleLike,
    base_logits: Tensor,
    aligned_logits: Tensor,
    reference_logits: Tensor | None = None,
    *,
    deferral_temperature: float | None = None,
) -> Tensor:
    """The log-probabilities of the composed model, log pi.

    Args:
        rule: the rule ("dual:threshold=0.4", a dict, a `Rule`), or a `Composition`, which has its temperature too.
        base_logits: (..., vocab), logits or log-probabilities of the base model p; any float dtype, -inf allowed.
        aligned_logits: the same shape, the aligned model q*.
        reference_logits: the same shape, the reference model q; needed by product rules, unused by cascades.
        deferral_temperature: short for `Composition(rule, deferral_temperature)`.

    Returns:
        (..., vocab), float32 (float64 if an input is), normalised.

    Raises:
        LogitsError: NaN, +inf or a row of only -inf.
        VocabularyError: shapes that differ.
        RuleError: a rule that needs the reference model without it, or a deferral temperature that is not positive.
    """
    composition = Composition.of(rule, deferral_temperature)
    rule, logits = composition.rule, _inputs(composition, base_logits, aligned_logits, reference_logits)
    if isinstance(rule, ThresholdRule):
        base = Distribution.from_logits(logits["base_logits"], "base_logits")
        if rule.reads_aligned:
            aligned = Distribution.from_logits(logits["aligned_logits"], "aligned_logits")
            return _compose_head(base, rule.cutoff(base, aligned), aligned.log_probs())
        log_aligned = log_probabilities(logits["aligned_logits"], "aligned_logits")
        # The cutoff does not look at q*, so p may stand where q* would.
        return _compose_head(base, rule.cutoff(base, base), log_aligned)
    return _compose_dense(rule, *(log_probabilities(values, name) for name, values in logits.items()))


def distributions(
    rule: RuleLike,
    base_logits: Tensor,
    aligned_logits: Tensor,
    reference_logits: Tensor | None = None,
    *,
    deferral_temperature: float | None = None,
) -> tuple[Distribution, Distribution, Distribution | None]:
    """Check and normalise the models' logits for `rule`: (base, aligned, reference or None). Errors as `compose`."""
    composition = Composition.of(rule, deferral_temperature)
    logits = _inputs(composition, base_logits, aligned_logits, reference_logits)
    rows = [Distribution.from_logits(values, name) for name, values in logits.items()]
    return rows[0], rows[1], rows[2] if len(rows) > 2 else None


def compose_distributions(
    rule: Rule, base: Distribution, aligned: Distribution, reference: Distribution | None = None
) -> Tensor:
    """log pi (..., vocab) from distributions that are already normalised; see `compose`."""
    if isinstance(rule, ThresholdRule):
        return _compose_head(base, rule.cutoff(base, aligned), aligned.log_probs())
    rows = (base, aligned) if reference is None else (base, aligned, reference)
    return _compose_dense(rule, *(row.log_probs() for row in rows))


def deferred_mass(rule: RuleLike, base_logits: Tensor, aligned_logits: Tensor) -> Tensor:
    """alpha = sum_v (1 - k_v) p_v, the mass that p hands over to q*: (..., vocab) -> (...,). Cascades only.

    Raises:
        RuleError: `rule` is a product, which defers nothing. Else as `compose`.
    """
    composition = Composition.of(rule)
    cascade = _cascade(composition.rule, "a deferred mass")
    log_p, log_aligned = _log_probs(composition, base_logits, aligned_logits)
    return _deferred(log_p, _keep(cascade, log_p, log_aligned)).squeeze(-1)


def acceptance(
    rule: RuleLike, base_logits: Tensor, aligned_logits: Tensor, reference_logits: Tensor | None = None
) -> Tensor:
    """beta = sum_v min(pi_v, q*_v) = 1 - TV(pi, q*), the expected acceptance of a draft from q*: (...,).

    q* is the aligned model at the deferral temperature, which is what drafts are drawn from. Source: Leviathan et al.
    2023, with pi as the target. For cascades beta >= alpha. Arguments and errors as `compose`.
    """
    composition = Composition.of(rule)
    log_pi = compose(composition, base_logits, aligned_logits, reference_logits)
    log_aligned = log_probabilities(raised(aligned_logits) / composition.deferral_temperature, "aligned_logits")
    return torch.minimum(log_pi, log_aligned).exp().sum(dim=-1)


def origin_shares(rule: RuleLike, base_logits: Tensor, aligned_logits: Tensor) -> tuple[Tensor, Tensor]:
    """How much of pi_v comes from p and how much from q*: (k_v p_v / pi_v, alpha q*_v / pi_v), each (..., vocab).

    The two sum to one. A token with pi_v = 0 counts as deferred: (0, 1). Cascades only.
    """
    composition = Composition.of(rule)
    cascade = _cascade(composition.rule, "origin shares")
    log_p, log_aligned = _log_probs(composition, base_logits, aligned_logits)
    keep = _keep(cascade, log_p, log_aligned)
    kept, deferred = keep * log_p.exp(), _deferred(log_p, keep) * log_aligned.exp()
    total = kept + deferred
    from_base = torch.where(total > 0, kept / total, torch.zeros_like(total))
    return from_base, 1.0 - from_base


def kept_tokens(rule: ThresholdRule, base: Distribution, aligned: Distribution) -> Kept:
    """The kept tokens {p_v >= tau} of every row, without a pass that forms probabilities."""
    row, token, log_alpha = base.split(rule.cutoff(base, aligned))
    return Kept(row, token, base.log_prob_at(row, token), aligned.log_prob_at(row, token), log_alpha.exp())


def residual(rule: ThresholdRule, base: Distribution, aligned: Distribution) -> Residual:
    """max(pi - q*, 0), sparse: on the kept tokens it is max(0, p_v - (1 - alpha) q*_v), elsewhere zero."""
    return residual_of(kept_tokens(rule, base, aligned))


def residual_of(kept: Kept) -> Residual:
    """The residual from kept tokens already found; see `residual`."""
    weight = kept.log_p.exp() - (1.0 - kept.alpha[kept.row]) * kept.log_aligned.exp()
    positive = weight > 0
    return Residual(kept.row[positive], kept.token[positive], weight[positive])


def _inputs(composition: Composition, base: Tensor, aligned: Tensor, reference: Tensor | None) -> dict[str, Tensor]:
    """The logits that the rule needs by name, of one shape and precision, over the deferral temperature."""
    rule, temperature = composition.rule, composition.deferral_temperature
    if rule.needs_reference and reference is None:
        raise RuleError(f"Rule {rule} needs the reference model's logits (reference_logits), but got none.")
    named = {"base_logits": base, "aligned_logits": aligned}
    if rule.needs_reference and reference is not None:
        named["reference_logits"] = reference
    if len({tuple(logits.shape) for logits in named.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(logits.shape)}" for name, logits in named.items())
        raise VocabularyError(
            f"The models' logits must have one shape (..., vocab), but are: {shapes}. "
            "Trim padded vocabularies to the common size first (kad.vocabulary.trim)."
        )
    dtype = torch.float32
    for logits in named.values():
        dtype = torch.promote_types(dtype, logits.dtype)
    if temperature != 1.0:
        named = {name: logits.to(dtype) / temperature for name, logits in named.items()}
    return {name: logits.to(dtype) for name, logits in named.items()}


def _log_probs(composition: Composition, base: Tensor, aligned: Tensor) -> tuple[Tensor, Tensor]:
    """(log p, log q*), in the arithmetic of `compose`: a decision at a tie must not depend on who asks."""
    named = _inputs(composition, base, aligned, None)
    log_p, log_aligned = (log_probabilities(values, name) for name, values in named.items())
    return log_p, log_aligned


def _compose_head(base: Distribution, cutoff: Tensor, log_aligned: Tensor) -> Tensor:
    """log pi = log alpha + log q*, corrected at the few kept tokens; log p where every token is kept.

    Args:
        base: rows (..., vocab) of p.
        cutoff: (...,), the smallest logit that is kept.
        log_aligned: (..., vocab), the log-probabilities of q*; overwritten unless a gradient needs them.
    """
    shape, base, cutoff = log_aligned.shape, base.flat(), cutoff.reshape(-1)
    whole = cutoff == -torch.inf
    row, token, log_alpha = base.split(cutoff.masked_fill(whole, torch.inf))
    log_aligned, log_alpha = log_aligned.reshape(base.logits.shape), log_alpha.unsqueeze(-1)
    log_pi = log_aligned + log_alpha if log_aligned.requires_grad else log_aligned.add_(log_alpha)
    log_pi[row, token] = torch.logaddexp(base.log_prob_at(row, token), log_pi[row, token])
    if bool(whole.any()):
        log_pi[whole] = base.logits[whole] - base.log_z[whole].unsqueeze(-1)
    return log_pi.reshape(shape)


def _compose_dense(rule: Rule, log_p: Tensor, log_aligned: Tensor, log_reference: Tensor | None = None) -> Tensor:
    """log pi of the rules that are no thresholds, in passes over the whole rows."""
    if isinstance(rule, CascadeRule):
        keep = _keep(rule, log_p, log_aligned)
        return _mix(log_p, log_aligned, keep.log(), _deferred(log_p, keep).log())
    if isinstance(rule, ProductRule):
        if log_reference is None:
            raise RuleError(f"Rule {rule} needs the reference model, but got none.")
        weights = rule.combine(log_p, log_aligned, log_reference)
        return log_probabilities(weights, f"the product of the models' probabilities under {rule}")
    raise RuleError(f"{type(rule).__name__} is neither a CascadeRule nor a ProductRule: derive it from one of them.")


def _mix(log_p: Tensor, log_aligned: Tensor, log_keep: Tensor, log_alpha: Tensor) -> Tensor:
    """log(k p + alpha q*), in passes that torch vectorises (its `logaddexp` is not)."""
    first, second = log_keep + log_p, log_alpha + log_aligned
    larger = torch.maximum(first, second)
    smaller = torch.minimum(first, second).sub_(larger).exp_()
    # Where both are -inf the difference is NaN, and the sum is -inf.
    return larger + smaller.nan_to_num_(nan=0.0).log1p_()


def _keep(rule: CascadeRule, log_p: Tensor, log_aligned: Tensor) -> Tensor:
    """The rule's keep probabilities, which a user's rule may get wrong."""
    keep = rule.keep(log_p, log_aligned)
    if not bool(((keep >= 0.0) & (keep <= 1.0)).all()):
        raise RuleError(
            f"The keep probabilities of rule {rule} must lie in [0, 1], but lie between {float(keep.min()):g} and "
            f"{float(keep.max()):g}: mend the rule's keep()."
        )
    return keep


def _deferred(log_p: Tensor, keep: Tensor) -> Tensor:
    """alpha (..., 1), summed over what is deferred: 1 - sum k p would cancel where p is sure."""
    return ((1.0 - keep) * log_p.exp()).sum(dim=-1, keepdim=True)


def _cascade(rule: Rule, what: str) -> CascadeRule:
    if not isinstance(rule, CascadeRule):
        raise RuleError(f"Only cascades have {what}; {rule} is not one.")
    return rule

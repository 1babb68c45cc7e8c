"""One formulation of pi for every device. Shapes are static and no value is read, so the host never waits for a GPU.

Cascades: pi_v = k_v p_v + alpha q*_v with alpha = sum_v (1 - k_v) p_v. Products: pi_v ∝ exp(rule.combine(...)_v). A row
that is not a distribution becomes NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from kad.errors import KadError, RuleError, UsageError, one_line
from kad.method.distribution import EXCLUDED, Distribution, columns_above
from kad.method.rules import CascadeRule, ProductRule, RowRules, Rule, ThresholdRule
from kad.method.rules.threshold import NumberRule

# Below this deferred mass its logarithm is taken of log-probabilities, which do not underflow.
_SMALL = 1e-30


@dataclass(frozen=True, eq=False)
class Composed:
    """The distributions of the models at the same positions, and the rule that composes them.

    Attributes:
        rule: the rule, or a rule for each row.
        base: rows of p at the deferral temperature, (..., vocab). Their rest, if they have one, is always deferred.
        aligned: rows of q*, the same.
        reference: rows of q, if the rule needs them.
        lacking: why a row of p is NaN here: only a list of its tokens is known, and the rule needs more. None: no such
            row.

    Raises:
        RuleError: only lists of tokens of p are known, and the rule always needs more.
    """

    rule: Rule
    base: Distribution
    aligned: Distribution
    reference: Distribution | None = None
    lacking: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.base.listed is not None:
            base, lacking = _completed(self.rule, self.base, self.aligned)
            object.__setattr__(self, "base", base)
            object.__setattr__(self, "lacking", lacking)

    def log_pi(self) -> Tensor:
        """log pi (..., vocab), see `kad.compose`."""
        return self.log_pi_and_alpha()[0]

    def log_pi_and_alpha(self) -> tuple[Tensor, Tensor | None]:
        """log pi (..., vocab), and the log of the deferred mass (..., 1), which is None for products."""
        rule, log_aligned = self.rule, self.aligned.log_probs()
        mended = self._mended(log_aligned)
        if mended is not None:
            return mended
        log_p = self.base.log_probs()
        if isinstance(rule, CascadeRule):
            keep = self.keep()
            if isinstance(rule, ThresholdRule):
                kept = torch.add(log_p, keep - 1.0, alpha=-EXCLUDED)
                deferred = torch.add(log_p, keep, alpha=EXCLUDED)
            else:
                kept = log_p + keep.log().clamp(min=EXCLUDED)
                deferred = log_p + torch.log1p(-keep).clamp(min=EXCLUDED)
            if self.base.log_rest is not None:
                deferred = torch.cat((deferred, self.base.log_rest), dim=-1)
            log_alpha = _log_sum(deferred)
            return torch.logaddexp(kept, log_aligned + log_alpha), log_alpha
        if isinstance(rule, ProductRule):
            weights = self.product()
            lowest = torch.maximum(log_p, log_aligned) + (weights.amax(dim=-1, keepdim=True) + EXCLUDED)
            return torch.where(weights == -torch.inf, lowest, weights).log_softmax(dim=-1), None
        raise RuleError(f"{type(rule).__name__} must be derived from CascadeRule or ProductRule.")

    def keep(self) -> Tensor:
        """The keep probabilities of a cascade, (..., vocab). NaN where a user's rule leaves [0, 1].

        Threshold rules compare a logit with a logit. The result is float, because CPUs are slow on booleans.
        """
        rule = self.rule
        if isinstance(rule, ThresholdRule):
            logits = self.base.logits.detach()
            return torch.ge(logits, self._cutoff.detach().unsqueeze(-1), out=torch.empty_like(logits))
        assert isinstance(rule, CascadeRule)
        log_p = self.base.log_probs()
        keep = asked(rule, "keep", log_p.shape, log_p, self.aligned.log_probs())
        return torch.where(keep == keep.clamp(0.0, 1.0), keep, torch.nan)

    def cascade(self) -> tuple[Tensor, Tensor]:
        """The two parts of pi = kept + alpha q*: k_v p_v (..., vocab), and alpha (...,), a sum of what is deferred."""
        p = self.base.probs()
        kept = self.keep() * p
        return kept, (p - kept).sum(dim=-1) + self._rest()

    def cascade_at_few(self, also: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """`cascade` of rows (rows, vocab) that keep few tokens, at these alone. Only on a CPU; None for other rows.

        Args:
            also: (m,), further tokens to look at.

        Returns:
            The tokens (n,) in rising order, k_v p_v there (rows, n), and alpha (rows,).
        """
        logits = self.base.logits
        if not isinstance(self.rule, ThresholdRule) or logits.ndim != 2:
            return None
        columns = columns_above(logits, self._cutoff)
        if columns is None:
            return None
        cutoff, p = self._cutoff.unsqueeze(-1), self.base.probs()
        kept_by_any = columns[(logits[:, columns] >= cutoff).any(dim=0)]
        tokens = cast("Tensor", torch.unique(torch.cat((kept_by_any, also))))
        there = p[:, tokens]
        kept = (logits[:, tokens] >= cutoff) * there
        return tokens, kept, p.index_fill(1, tokens, 0.0).sum(dim=-1) + (there - kept).sum(dim=-1) + self._rest()

    def from_base(self, tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The part of pi_v that comes from p, k_v p_v / pi_v, and alpha (...,). It is 0 where pi_v is 0. Cascades only.

        Args:
            tokens: (..., n), the parts of these tokens. None: of all, (..., vocab).
        """
        (kept, alpha), q = self.cascade(), self.aligned.probs()
        if tokens is not None:
            kept, q = kept.gather(-1, tokens), q.gather(-1, tokens)
        pi = kept + alpha.unsqueeze(-1) * q
        return torch.where(pi == 0, 0.0, kept / pi), alpha

    def product(self) -> Tensor:
        """The unnormalized log-weights of a product, (..., vocab). -inf for tokens that p never keeps."""
        assert isinstance(self.rule, ProductRule)
        log_p, reference = self.base.log_probs(), None if self.reference is None else self.reference.log_probs()
        weights = asked(self.rule, "combine", log_p.shape, log_p, self.aligned.log_probs(), reference)
        # Whatever p's exponent is: with a negative one, the lowest p would win.
        return weights if self.base.log_rest is None else weights.masked_fill(log_p < EXCLUDED / 2, -torch.inf)

    def _rest(self) -> Tensor | float:
        """(...,), the probability of the rest."""
        return 0.0 if self.base.log_rest is None else self.base.log_rest.exp().squeeze(-1)

    @cached_property
    def _cutoff(self) -> Tensor:
        assert isinstance(self.rule, ThresholdRule)
        return asked(self.rule, "cutoff", self.base.logits.shape[:-1], self.base, self.aligned)

    def _mended(self, log_aligned: Tensor) -> tuple[Tensor, Tensor] | None:
        """log pi and log alpha on a CPU, for rows (n, vocab) that keep few tokens: alpha q*, mended at these.

        This is the only place where a CPU takes another path. Passes over whole rows are slow there.
        """
        few = self.cascade_at_few(torch.empty(0, dtype=torch.long))
        if few is None:
            return None
        columns, _, alpha = few
        if not bool((alpha > _SMALL).all()):
            return None
        logits = self.base.logits[:, columns]
        kept = torch.where(logits >= self._cutoff.unsqueeze(-1), logits - self.base.log_z.unsqueeze(-1), -torch.inf)
        log_alpha = alpha.log().unsqueeze(-1)
        log_pi = log_aligned + log_alpha
        if bool(log_pi.amin() < EXCLUDED):
            log_pi = torch.maximum(log_pi, self.base.log_probs() + EXCLUDED)
        return log_pi.index_copy_(1, columns, torch.logaddexp(kept, log_pi[:, columns])), log_alpha


def takes_lists(rule: Rule) -> bool:
    """Whether a rule can do with the most probable tokens of p: its cutoff is that of the whole row, and not -inf."""
    if isinstance(rule, RowRules):
        return True
    return isinstance(rule, NumberRule) and not rule.numbers.whole and rule.numbers.offset != -math.inf


def check_takes_lists(rule: Rule) -> None:
    """Raise RuleError for a rule that cannot do with the most probable tokens of p."""
    if not takes_lists(rule):
        raise RuleError(
            f"Rule {rule} needs all of p, and a server gives the most probable tokens alone. Take dual, primal, "
            "relative or confidence_bet."
        )


def _completed(rule: Rule, base: Distribution, aligned: Distribution) -> tuple[Distribution, str | None]:
    """Rows of p whose lists hold every token that the rule keeps: no other token can reach the cutoff.

    The cutoff itself is that of the whole row. It is made of the normalizer, the largest tokens of p and the row of q*.
    A row of which no longer list is to be had becomes NaN. It does no harm after a draft that is rejected.

    Returns:
        The rows, and why one of them is NaN. None if none is.
    """
    check_takes_lists(rule)
    normalize = Distribution.in_probabilities if base.dense is None else Distribution.of
    lacking = None
    while base.listed is not None:
        cutoff, bound = asked(rule, "cutoff", base.logits.shape[:-1], base, aligned), base.listed.bound.squeeze(-1)
        short = (bound >= cutoff) & (bound > -math.inf)  # where every token is listed, every token may be kept
        if not bool(short.any()):
            break
        try:
            longer: Any = base.listed.with_longer(base.listed.place[short].flatten().tolist())
        except UsageError as error:
            longer = math.nan
            lacking = (
                f"Rule {rule} may keep a token that the server does not name. {error} Or take a rule that keeps fewer "
                "tokens, such as dual:threshold=0.4."
            )
        base = normalize(base.listed.replaced(short, longer))
    return base, lacking


def asked(rule: Rule, what: str, shape: torch.Size, *models: Any) -> Tensor:
    """What a rule says. It may be somebody else's.

    Raises:
        RuleError: it fails, or gives something of another shape.
    """
    if torch.compiler.is_compiling():
        return cast("Tensor", getattr(rule, what)(*models))
    try:
        answer = getattr(rule, what)(*models)
    except KadError:
        raise
    except Exception as error:  # a rule of a user may raise anything
        raise RuleError(f"{what}() of rule {rule} failed: {one_line(error)}. Mend the rule.") from error
    if not isinstance(answer, Tensor) or answer.shape != shape:
        got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise RuleError(f"{what}() of rule {rule} must give a tensor of shape {tuple(shape)}, but gave {got}.")
    return answer


def _log_sum(log_x: Tensor) -> Tensor:
    """logsumexp of each row, (..., 1): one fused pass, and at the largest entry nothing cancels."""
    return log_x.amax(dim=-1, keepdim=True) - log_x.log_softmax(dim=-1).amax(dim=-1, keepdim=True)

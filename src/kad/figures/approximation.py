"""What can be measured at a position: certificates of the knapsack, and the effect of each rule. Pure tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kad.method import knapsack
from kad.method.composition import compose
from kad.method.knapsack import Exact
from kad.method.rules import CascadeRule, Dual, LinearProgram, Primal

LAMBDAS = tuple(round(0.02 * step, 2) for step in range(1, 51))
"""The thresholds at which the entropy difference is taken."""


@dataclass(frozen=True)
class Approximation:
    """One column for each quantity and one row for each position. All are `(n,)` float64; values are in nats.

    Attributes:
        max_p: the base model's largest probability.
        entropy: of p; the value of deferring everything.
        head: how many tokens primal keeps.
        critical: the weight of the critical item, together with all tokens of equal p.
        unfilled: the budget that primal leaves unused.
        bound: a proven upper bound on the exact optimum at the budget; `dantzig` the LP's.
        optimum: the exact optimum's value, within `proof` of `bound`.
        primal_value, dual_value, dual_weight: value and mass of the two approximations; the dual rule has no budget.
        primal_gap: bound - primal_value, so at least the true distance from the optimum.
        dual_gap: the same for the dual rule where it keeps to the budget, else NaN.
        dual_own_gap: bound at the mass that dual itself defers, minus its value: 0 up to rounding [Everett 1963].
        exact_tv: total variation between pi under the exact optimum and under primal; `lp_tv` the same for the LP.
        exact_keeps_top: 1 where the exact optimum keeps p's most probable token, else 0.
        same_argmax: 1 where pi's most probable token is the same under the exact optimum and primal.
        acceptance_*: sum_v min(pi_v, q*_v) under that solution.
    """

    max_p: Tensor
    entropy: Tensor
    head: Tensor
    critical: Tensor
    unfilled: Tensor
    bound: Tensor
    dantzig: Tensor
    optimum: Tensor
    proof: Tensor
    primal_value: Tensor
    dual_value: Tensor
    dual_weight: Tensor
    primal_gap: Tensor
    dual_gap: Tensor
    dual_own_gap: Tensor
    exact_tv: Tensor
    lp_tv: Tensor
    exact_keeps_top: Tensor
    same_argmax: Tensor
    acceptance_primal: Tensor
    acceptance_dual: Tensor
    acceptance_exact: Tensor
    acceptance_lp: Tensor


def approximation(
    base_logits: Tensor, aligned_logits: Tensor, *, budget: float = 0.9, threshold: float = 0.4
) -> Approximation:
    """The quality of primal and dual at each position of logits (n, vocab), against the exact optimum at `budget`."""
    log_p, log_aligned = (torch.log_softmax(logits.double(), -1) for logits in (base_logits, aligned_logits))
    primal, dual = knapsack.greedy(log_p, budget), knapsack.thresholded(log_p, threshold, budget)
    exact = knapsack.exact(log_p, budget)
    log_pi = {
        "primal": compose(Primal(budget), log_p, log_aligned),
        "dual": compose(Dual(threshold), log_p, log_aligned),
        "lp": compose(LinearProgram(budget), log_p, log_aligned),
        "exact": compose(_Fixed(exact.deferred), log_p, log_aligned),
    }
    accepted = {f"acceptance_{name}": _overlap(pi, log_aligned) for name, pi in log_pi.items()}
    top = log_p.argmax(-1, keepdim=True)
    return Approximation(
        max_p=log_p.amax(-1).exp(),
        entropy=knapsack.item_values(log_p).sum(-1),
        head=(primal.deferred == 0).sum(-1).double(),
        critical=knapsack.critical_item(log_p, budget).group,
        unfilled=budget - primal.weight,
        bound=exact.bound,
        dantzig=primal.bound,
        optimum=exact.value,
        proof=exact.gap,
        primal_value=primal.value,
        dual_value=dual.value,
        dual_weight=dual.weight,
        primal_gap=(exact.bound - primal.value).clamp(min=0),
        dual_gap=torch.where(dual.weight <= budget, (exact.bound - dual.value).clamp(min=0), torch.nan),
        dual_own_gap=_own_gap(log_p, threshold, dual),
        exact_tv=1 - _overlap(log_pi["exact"], log_pi["primal"]),
        lp_tv=1 - _overlap(log_pi["lp"], log_pi["primal"]),
        exact_keeps_top=(exact.deferred.gather(-1, top).squeeze(-1) == 0).double(),
        same_argmax=(log_pi["exact"].argmax(-1) == log_pi["primal"].argmax(-1)).double(),
        **accepted,
    )


def concatenate(parts: list[Approximation]) -> Approximation:
    """The rows of several texts, one after the other."""
    names = Approximation.__dataclass_fields__
    return Approximation(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def entropy_difference(base_logits: Tensor, oracle_logits: Tensor) -> tuple[Tensor, Tensor]:
    """How much more uncertain p is than the oracle p* about the tokens that the dual rule defers, for each of LAMBDAS.

    Returns:
        Two (thresholds, n): the difference of the sums `-sum_v d_v x_v log x_v` for x = p and p*, i.e. of the expected
        loss shed under the plug-in and under the oracle; and the difference of the entropies of p and p* given v in d,
        NaN where nothing is deferred.
    """
    log_p, log_oracle = (torch.log_softmax(logits.double(), -1) for logits in (base_logits, oracle_logits))
    sums, conditionals = [], []
    for threshold in LAMBDAS:
        deferred = (log_p.exp() < threshold).double()
        sums.append(knapsack.value(log_p, deferred) - knapsack.value(log_oracle, deferred))
        conditionals.append(_conditional_entropy(log_p, deferred) - _conditional_entropy(log_oracle, deferred))
    return torch.stack(sums), torch.stack(conditionals)


@dataclass(frozen=True)
class _Fixed(CascadeRule):
    """A given deferral as a rule, so that `compose` is the only place that mixes."""

    deferred: Tensor
    name = Exact.name

    def __post_init__(self) -> None:
        """Holds a tensor, not a number to check."""

    def keep(self, log_p: Tensor, log_aligned: Tensor) -> Tensor:
        return (1 - self.deferred).to(log_p.dtype)


def _overlap(log_a: Tensor, log_b: Tensor) -> Tensor:
    return torch.minimum(log_a, log_b).exp().sum(-1)


def _own_gap(log_p: Tensor, threshold: float, dual: knapsack.Solution) -> Tensor:
    mu = -torch.tensor(threshold, dtype=torch.float64).log()
    at_zero = knapsack.lagrangian_bound(log_p, threshold, 0.0)
    return at_zero + mu * dual.weight - dual.value


def _conditional_entropy(log_x: Tensor, mask: Tensor) -> Tensor:
    """H = value / mass + log mass of the distribution restricted to `mask` and normalized."""
    mass = knapsack.weight(log_x, mask)
    entropy = knapsack.value(log_x, mask) / mass + mass.log()
    return torch.where(mass > 0, entropy, torch.nan)

"""The definitions of docs/method.md, written slowly: float64, loops, one row at a time. The truth of the tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Row = Sequence[float]


def softmax(logits: Row) -> list[float]:
    """Probabilities of one row of logits; -inf is probability zero."""
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    total = math.fsum(weights)
    return [w / total for w in weights]


def keep_dual(p: Row, q: Row, threshold: float) -> list[float]:
    return [1.0 if v >= threshold else 0.0 for v in p]


def keep_primal(p: Row, q: Row, budget: float) -> list[float]:
    """tau: the largest value of p whose deferred tail, the sum of all p_v < tau, is at most the budget."""
    if budget >= 1.0:
        return [0.0] * len(p)
    tau = max(value for value in p if math.fsum(v for v in p if v < value) <= budget)
    return [1.0 if v >= tau else 0.0 for v in p]


def keep_nudging(p: Row, q: Row, threshold: float) -> list[float]:
    return [1.0 if max(p) >= threshold else 0.0] * len(p)


def keep_confidence_bet(p: Row, q: Row, margin: float) -> list[float]:
    return [1.0 if v >= max(q) - margin else 0.0 for v in p]


def keep_relative(p: Row, q: Row, margin: float) -> list[float]:
    return [1.0 if v >= max(p) - margin else 0.0 for v in p]


def keep_mixture(p: Row, q: Row, weight: float) -> list[float]:
    return [weight] * len(p)


def keep_veto(p: Row, q: Row, threshold: float, plausibility: float) -> list[float]:
    return [1.0 if a >= threshold and b >= plausibility * max(q) else 0.0 for a, b in zip(p, q, strict=True)]


def keep_blend(p: Row, q: Row, threshold: float, agreement: float) -> list[float]:
    if max(p) >= threshold:
        return [1.0] * len(p)
    of_aligned = max(a for a, b in zip(p, q, strict=True) if b == max(q))
    return [1.0 - min(1.0, max(q) / (max(p) + max(q)) + agreement * of_aligned)] * len(p)


def keep_wanted(p: Row, q: Row, margin: float) -> list[float]:
    return [0.0 if v < max(p) + margin else 1.0 for v in q]


def keep_lp(p: Row, q: Row, budget: float) -> list[float]:
    """Fill the budget from the smallest p up; tokens of equal p share what is left for them."""
    keep, left = [0.0] * len(p), budget
    for value in sorted(set(p)):
        tied = [i for i, v in enumerate(p) if v == value]
        mass = value * len(tied)
        deferred = 1.0 if mass <= left else left / mass
        left -= deferred * mass
        for i in tied:
            keep[i] = 1.0 - deferred
    return keep


KEEP: dict[str, Callable[..., list[float]]] = {
    "dual": keep_dual,
    "primal": keep_primal,
    "nudging": keep_nudging,
    "confidence_bet": keep_confidence_bet,
    "relative": keep_relative,
    "mixture": keep_mixture,
    "veto": keep_veto,
    "blend": keep_blend,
    "lp": keep_lp,
    "aligned_only": lambda p, q: [0.0] * len(p),
    "base_only": lambda p, q: [1.0] * len(p),
}


def deferred_mass(p: Row, keep: Row) -> float:
    return math.fsum((1.0 - k) * v for k, v in zip(keep, p, strict=True))


def cascade(p: Row, q: Row, keep: Row) -> list[float]:
    alpha = deferred_mass(p, keep)
    return [k * a + alpha * b for k, a, b in zip(keep, p, q, strict=True)]


def product(p: Row, q: Row, r: Row, base: float = 1.0, aligned: float = 1.0, plausibility: float = 0.0) -> list[float]:
    weights = []
    for a, b, c in zip(p, q, r, strict=True):
        ratio = 1.0 if aligned == 0 else (0.0 if c == 0 else (b / c) ** aligned)
        weights.append(a**base * ratio if b >= plausibility * max(q) else 0.0)
    total = math.fsum(weights)
    return [w / total for w in weights]


def contrastive(p: Row, q: Row, r: Row, weight: float, plausibility: float) -> list[float]:
    weights = []
    for a, c in zip(p, r, strict=True):
        plausible = a >= plausibility * max(p)
        penalty = 1.0 if weight == 0 else (0.0 if c == 0 else c**-weight)
        weights.append(a ** (1 + weight) * penalty if plausible else 0.0)
    total = math.fsum(weights)
    return [w / total for w in weights]


def acceptance(pi: Row, q: Row) -> float:
    return math.fsum(min(a, b) for a, b in zip(pi, q, strict=True))

"""The uncertainty of accuracies and of paired differences, in plain numpy. The unit is the *question*.

Several samples of one question are not independent. So the functions first average the marks of each question, and then
treat the questions as the sample. With one sample per question the marks are 0 or 1, and exact methods apply: Wilson's
interval [Wilson 1927] and McNemar's exact test [McNemar 1947]. With several samples the interval is Wilson's at the
effective sample size of the question means. The test is then a sign-flip permutation test over questions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Means = NDArray[np.float64]

_BOOTSTRAP_DRAWS = 10_000
_PERMUTATIONS = 10_000


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedComparison:
    """The difference method - baseline over the same questions, its interval, and the p value of "no difference"."""

    difference: Interval
    p_value: float
    questions: int
    wins: int
    losses: int
    test: str


def accuracy_interval(marks: Sequence[Sequence[float]], confidence: float = 0.95) -> Interval:
    """The mean mark with its interval. `marks[i]` holds question i's marks, in [0, 1], one per sample.

    One sample per question: Wilson's interval. Several: Wilson's interval of the question means, at the effective
    sample size p (1 - p) / (variance of the mean). If all answers agree, the number of questions is that size. The
    interval always lies in [0, 1].
    """
    means = question_means(marks)
    estimate = float(means.mean())
    binary = all(len(question) == 1 for question in marks)
    size = len(means) if binary else effective_size(means)
    return wilson(estimate, size, confidence)


def wilson(proportion: float, size: float, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion among `size` trials. An effective size may be a fraction."""
    if size <= 0:
        raise ValueError(f"wilson got size {size}, but needs at least one trial.")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    center = (proportion + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * math.sqrt(proportion * (1 - proportion) / size + z * z / (4 * size * size))
    low = 0.0 if proportion == 0 else max(0.0, center - half)
    high = 1.0 if proportion == 1 else min(1.0, center + half)
    return Interval(proportion, low, high)


def difference_of(first: Interval, second: Interval) -> Interval:
    """first - second, independent proportions with Wilson's intervals: the hybrid score interval [Newcombe 1998]."""
    estimate = first.estimate - second.estimate
    low = math.hypot(first.estimate - first.low, second.high - second.estimate)
    high = math.hypot(first.high - first.estimate, second.estimate - second.low)
    return Interval(estimate, estimate - low, estimate + high)


def effective_size(means: Means) -> float:
    """The number of independent binary trials with the same uncertainty: p (1 - p) / var(mean of means)."""
    center = float(means.mean())
    spread = float(means.var(ddof=1)) / len(means) if len(means) > 1 else 0.0
    if spread == 0 or center in (0.0, 1.0):
        return float(len(means))
    return center * (1 - center) / spread


def compare_paired(
    method: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]], *, seed: int = 0, confidence: float = 0.95
) -> PairedComparison:
    """Method against baseline on the same questions, in the same order.

    One sample per question: McNemar's exact test. Several: a sign-flip permutation test on the question
    means. The interval of the difference is a percentile bootstrap over questions in both cases.
    """
    if len(method) != len(baseline) or not method:
        raise ValueError(f"Got {len(method)} and {len(baseline)} questions. Give equally many, and at least one.")
    differences = question_means(method) - question_means(baseline)
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    binary = all(len(question) == 1 for question in (*method, *baseline))
    p_value = mcnemar_exact(wins, losses) if binary else sign_flip(differences, seed=seed)
    return PairedComparison(
        difference=bootstrap_mean(differences, seed=seed, confidence=confidence),
        p_value=p_value,
        questions=len(differences),
        wins=wins,
        losses=losses,
        test="McNemar exact" if binary else "sign-flip permutation over questions",
    )


def mcnemar_exact(wins: int, losses: int) -> float:
    """The two-sided exact p value of McNemar's test.

    Under "no difference", the questions on which the methods disagree are throws of a fair coin.
    """
    total, tail = wins + losses, min(wins, losses)
    below = sum(math.comb(total, k) for k in range(tail + 1))
    # Integers divide exactly where 2.0**total would overflow.
    return min(1.0, 2 * below / (1 << total))


def sign_flip(differences: Means, *, seed: int = 0, permutations: int = _PERMUTATIONS) -> float:
    """The two-sided p value of "the differences are symmetric about 0", by random sign flips. It is never 0."""
    nonzero = differences[differences != 0]
    if len(nonzero) == 0:
        return 1.0
    observed = abs(float(nonzero.sum()))
    signs = np.random.default_rng(seed).integers(0, 2, size=(permutations, len(nonzero))) * 2 - 1
    # Slightly below, so that the observed arrangement counts as extreme for every order of summation.
    extreme = int((np.abs(signs @ nonzero) >= observed * (1 - 1e-12)).sum())
    return (extreme + 1) / (permutations + 1)


def bootstrap_mean(
    values: Means, *, seed: int = 0, confidence: float = 0.95, draws: int = _BOOTSTRAP_DRAWS
) -> Interval:
    """The mean with a percentile bootstrap interval, resampling questions."""
    generator = np.random.default_rng(seed)
    # In slices: draws x questions at once would be gigabytes for a thousand questions and more.
    per_slice = max(1, 2_000_000 // len(values))
    means = [
        values[generator.integers(0, len(values), size=(min(per_slice, draws - start), len(values)))].mean(axis=1)
        for start in range(0, draws, per_slice)
    ]
    low, high = np.quantile(np.concatenate(means), [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(values.mean()), float(low), float(high))


def question_means(marks: Sequence[Sequence[float]]) -> Means:
    """Each question's mean mark, (questions,)."""
    if not marks or any(len(question) == 0 for question in marks):
        raise ValueError("The marks need at least one question, and at least one sample of each.")
    return np.array([sum(question) / len(question) for question in marks], dtype=np.float64)

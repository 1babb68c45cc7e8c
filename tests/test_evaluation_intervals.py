"""The statistics against scipy and statsmodels, on synthetic outcomes with the edges: all right, all wrong,
ties."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from kad.evaluation.results import intervals


def one_each(values: list[float]) -> list[list[float]]:
    return [[value] for value in values]


@pytest.mark.parametrize(("right", "total"), [(0, 1), (1, 1), (0, 30), (30, 30), (1, 30), (17, 30), (661, 1319)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_equals_statsmodels(right: int, total: int, confidence: float) -> None:
    interval = intervals.accuracy_interval(one_each([1.0] * right + [0.0] * (total - right)), confidence)
    low, high = proportion_confint(right, total, alpha=1 - confidence, method="wilson")
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((right / total, low, high), abs=1e-12)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (0, 1), (5, 0), (5, 5), (3, 17), (40, 21), (700, 600)])
def test_mcnemar_equals_statsmodels_and_the_binomial_test(wins: int, losses: int) -> None:
    table = [[100, wins], [losses, 100]]
    ours = intervals.mcnemar_exact(wins, losses)
    assert ours == pytest.approx(min(1.0, mcnemar(table, exact=True).pvalue), abs=1e-12)
    if wins + losses:
        assert ours == pytest.approx(stats.binomtest(wins, wins + losses).pvalue, abs=1e-12)


@pytest.mark.parametrize(("right", "total"), [((54, 81), (100, 90)), ((0, 5), (30, 300)), ((50, 20), (50, 20))])
def test_independent_proportions_differ_as_statsmodels_says(right: tuple[int, int], total: tuple[int, int]) -> None:
    first, second = (intervals.wilson(a / b, b) for a, b in zip(right, total, strict=True))
    found = intervals.difference_of(first, second)
    low, high = confint_proportions_2indep(right[0], total[0], right[1], total[1], method="newcomb")
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert found.estimate == first.estimate - second.estimate


@pytest.mark.parametrize("edge", ["all right", "all wrong", "ties"])
def test_no_difference_is_no_evidence(edge: str) -> None:
    marks = one_each({"all right": [1.0] * 20, "all wrong": [0.0] * 20, "ties": [1.0, 0.0] * 10}[edge])
    comparison = intervals.compare_paired(marks, marks)
    assert comparison.p_value == 1.0
    assert (comparison.difference.low, comparison.difference.high) == (0.0, 0.0)
    assert (comparison.wins, comparison.losses, comparison.test) == (0, 0, "McNemar exact")


def test_all_right_against_all_wrong() -> None:
    comparison = intervals.compare_paired(one_each([1.0] * 12), one_each([0.0] * 12))
    assert comparison.p_value == pytest.approx(2 / 2**12)
    assert comparison.difference == intervals.Interval(1.0, 1.0, 1.0)


def test_bootstrap_interval_equals_scipy() -> None:
    generator = np.random.default_rng(3)
    values = generator.choice([-1.0, 0.0, 1.0], size=400, p=[0.15, 0.6, 0.25])
    ours = intervals.bootstrap_mean(values, seed=1)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(2))
    assert ours.estimate == pytest.approx(values.mean())
    # Two independent bootstraps agree to their own noise, about 1 % of the interval's width here.
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.06 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.06 * width)


def test_sign_flip_equals_scipys_exact_permutation_test() -> None:
    differences = np.array([0.5, 0.25, -0.25, 0.75, 0.0, 0.5, 0.25, -0.5, 0.25, 0.25])
    exact = stats.permutation_test(
        (differences,), lambda x: np.mean(x), permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert intervals.sign_flip(differences, seed=0) == pytest.approx(exact, abs=0.02)


def test_samples_of_one_question_are_no_independent_evidence() -> None:
    """Twenty copies of each mark leave the interval where one copy has it, up to the n / (n - 1) of the
    sample variance."""
    marks = [1.0] * 30 + [0.0] * 20
    once = intervals.accuracy_interval(one_each(marks))
    copied = intervals.accuracy_interval([[mark] * 20 for mark in marks])
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=0.02)
    independent = intervals.wilson(0.6, 50 * 20)
    assert copied.high - copied.low > 3 * (independent.high - independent.low)


def test_clustered_interval_covers() -> None:
    """Questions of different difficulty, four samples each: the 95 % interval holds the truth about 95 times
    in 100."""
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        difficulty = generator.beta(0.5, 0.5, size=60)
        marks = generator.binomial(1, difficulty[:, None], size=(60, 4)).astype(float).tolist()
        interval = intervals.accuracy_interval(marks)
        hits += interval.low <= 0.5 <= interval.high
    assert 0.92 <= hits / 400 <= 0.98


def test_clustered_comparison_keeps_its_level() -> None:
    generator = np.random.default_rng(1)
    rejected = 0
    for _ in range(200):
        difficulty = generator.beta(0.5, 0.5, size=40)
        draws = generator.binomial(1, difficulty[:, None], size=(2, 40, 3)).astype(float)
        rejected += intervals.compare_paired(draws[0].tolist(), draws[1].tolist()).p_value < 0.05
    assert rejected / 200 <= 0.09


def test_different_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 2 questions"):
        intervals.compare_paired(one_each([1, 1, 0]), one_each([1, 0]))
    with pytest.raises(ValueError, match="at least one sample"):
        intervals.accuracy_interval([[1.0], []])

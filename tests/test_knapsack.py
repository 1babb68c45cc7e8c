"""The knapsack's solutions and bounds against brute force, OR-Tools, and the rules that approximate it."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kad.errors import UsageError
from kad.method import knapsack
from kad.rules import Dual, LinearProgram, Primal

TOLERANCE = 1e-9


@st.composite
def instances(draw: st.DrawFn, max_tokens: int = 9) -> tuple[Tensor, float]:
    """A distribution (ties, zeros and near-certainty among them) and a budget."""
    parts = draw(st.lists(st.integers(0, 60), min_size=1, max_size=max_tokens).filter(any))
    power = draw(st.sampled_from([0.5, 1.0, 4.0]))
    p = torch.tensor(parts, dtype=torch.float64) ** power
    return (p / p.sum()).log(), draw(st.one_of(st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.floats(0.0, 1.0)))


def brute_force(log_p: Tensor, budget: float) -> float:
    deferrals = torch.tensor(list(product([0.0, 1.0], repeat=len(log_p))), dtype=torch.float64)
    feasible = knapsack.weight(log_p, deferrals) <= budget + (1e-12 if budget == 1.0 else 1e-15)
    return float(knapsack.value(log_p, deferrals)[feasible].max())


def random_rows(seed: int, rows: int, vocab: int, scale: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(scale * torch.randn(rows, vocab, generator=generator, dtype=torch.float64), -1)


@given(instances())
@settings(max_examples=150, deadline=None)
def test_exact_is_the_optimum_of_every_deferral(instance: tuple[Tensor, float]) -> None:
    log_p, budget = instance
    optimum = brute_force(log_p, budget)
    solution = knapsack.exact(log_p, budget, tolerance=0.0)
    assert float(solution.value) == pytest.approx(optimum, abs=TOLERANCE)
    assert solution.weight <= budget + 1e-12
    assert solution.bound >= optimum - TOLERANCE


@given(instances())
@settings(max_examples=150, deadline=None)
def test_bounds_are_ordered(instance: tuple[Tensor, float]) -> None:
    log_p, budget = instance
    exact, greedy = knapsack.exact(log_p, budget), knapsack.greedy(log_p, budget)
    dantzig = knapsack.dantzig_bound(log_p, budget)
    assert dantzig >= exact.bound - TOLERANCE
    assert exact.bound >= brute_force(log_p, budget) - TOLERANCE
    assert exact.value >= greedy.value - knapsack.TOLERANCE
    assert greedy.weight <= budget + 1e-12
    for threshold in (0.05, 0.4, 1.0):
        assert knapsack.lagrangian_bound(log_p, threshold, budget) >= dantzig - TOLERANCE


@given(instances(), st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_a_search_cut_short_still_proves_its_bound(instance: tuple[Tensor, float], max_states: int) -> None:
    log_p, budget = instance
    solution = knapsack.exact(log_p, budget, max_states=max_states)
    optimum = brute_force(log_p, budget)
    assert solution.weight <= budget + 1e-12
    assert solution.value <= optimum + TOLERANCE <= solution.bound + 2 * TOLERANCE


@pytest.mark.parametrize("budget", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_exact_agrees_with_or_tools(budget: float, scale: float) -> None:
    """OR-Tools wants integers: weights rounded up and values down to 1e-9, so it may lose V * 1e-9 (or a tight fit)."""
    solver_module = pytest.importorskip("ortools.algorithms.python.knapsack_solver")
    log_p = random_rows(3, 4, 40, scale)
    solution = knapsack.exact(log_p, budget, tolerance=1e-9, max_states=100_000)
    for row, got, proven in zip(log_p, solution.value, solution.bound, strict=True):
        weights = (row.exp() * 1e9).ceil().long().tolist()
        values = (knapsack.item_values(row) * 1e9).floor().long().tolist()
        solver = solver_module.KnapsackSolver(
            solver_module.SolverType.KNAPSACK_MULTIDIMENSION_BRANCH_AND_BOUND_SOLVER, "kad"
        )
        solver.init(values, [weights], [int(budget * 1e9)])
        assert float(got) == pytest.approx(solver.solve() * 1e-9, abs=1e-6)
        assert float(proven - got) <= 1.001e-9


@pytest.mark.parametrize("vocab", [96, 49_152])
@pytest.mark.parametrize("budget", [0.0, 0.3, 0.9, 1.0])
def test_lp_meets_the_budget_on_every_row(vocab: int, budget: float) -> None:
    log_p = random_rows(1, 8, vocab, 4.0)
    assert torch.allclose(knapsack.linear(log_p, budget).weight, torch.full((8,), budget).double(), atol=1e-9)
    single = log_p.float()
    alpha = knapsack.weight(single, 1 - LinearProgram(budget).keep(single, single)).float()
    assert torch.allclose(alpha, torch.full((8,), budget), atol=1e-6)


@given(instances())
@settings(max_examples=100, deadline=None)
def test_lp_rule_is_the_lp_solution(instance: tuple[Tensor, float]) -> None:
    """Also under ties: the tied critical tokens share the fraction."""
    log_p, budget = instance
    keep = LinearProgram(budget).keep(log_p, log_p)
    p, deferred = log_p.exp(), knapsack.linear(log_p, budget).deferred
    assert torch.allclose(p * (1 - keep), p * deferred, atol=1e-9)


def test_greedy_and_threshold_are_the_rules() -> None:
    log_p = random_rows(2, 50, 300, 3.0)
    for solution, rule in (
        (knapsack.greedy(log_p, 0.9), Primal(0.9)),
        (knapsack.thresholded(log_p, 0.4, 0.9), Dual(0.4)),
    ):
        assert torch.equal(1 - solution.deferred, rule.keep(log_p, log_p))


def test_the_dual_is_optimal_for_the_mass_it_defers() -> None:
    log_p = random_rows(4, 20, 200, 3.0)
    for row in log_p:
        solution = knapsack.thresholded(row, 0.1, 1.0)
        bound = knapsack.lagrangian_bound(row, 0.1, float(solution.weight))
        assert float(bound) == pytest.approx(float(solution.value), abs=1e-12)


def test_a_worked_example() -> None:
    """p = (.5, .3, .2), b = .9: greedy keeps the .5, the optimum defers it and keeps the .2."""
    log_p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    critical = knapsack.critical_item(log_p, 0.9)
    assert [float(x) for x in (critical.weight, critical.tail, critical.group, critical.fraction)] == pytest.approx(
        [0.5, 0.5, 0.5, 0.8]
    )
    assert knapsack.greedy(log_p, 0.9).deferred.tolist() == [0, 1, 1]
    assert knapsack.exact(log_p, 0.9).deferred.tolist() == [1, 1, 0]
    assert knapsack.linear(log_p, 0.9).deferred.tolist() == pytest.approx([0.8, 1, 1])


def test_tied_tokens_share_one_fate() -> None:
    log_p = torch.tensor([0.2, 0.4, 0.4], dtype=torch.float64).log()
    assert knapsack.greedy(log_p, 0.7).deferred.tolist() == [1, 0, 0]
    assert knapsack.linear(log_p, 0.7).deferred.tolist() == pytest.approx([1, 0.625, 0.625])


def test_zero_probability_and_shape() -> None:
    log_p = torch.log_softmax(torch.tensor([[[1.0, -torch.inf, 0.0], [0.0, 0.0, -torch.inf]]]), -1)
    for solution in (knapsack.greedy(log_p, 0.9), knapsack.linear(log_p, 0.9), knapsack.exact(log_p, 0.9)):
        assert solution.deferred.shape == log_p.shape
        assert solution.value.shape == solution.gap.shape == log_p.shape[:-1]
        assert solution.value.isfinite().all()


def test_bad_parameters_say_what_is_allowed() -> None:
    log_p = random_rows(0, 1, 4, 1.0)
    with pytest.raises(UsageError, match=r"tolerance must be >= 0 nats, but is -1"):
        knapsack.exact(log_p, 0.9, tolerance=-1)
    with pytest.raises(UsageError, match=r"threshold must lie in \(0, 1\].*but is 0"):
        knapsack.lagrangian_bound(log_p, 0.0, 0.9)

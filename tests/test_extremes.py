"""Rows that no model should give, and some give: pi sums to one, its first choice stands, a draft changes nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import kad
from kad.errors import LogitsError
from kad.method.composed import Composed
from kad.method.composition import Composition, compose, composed
from kad.method.distribution import RowsWithRest, move_to_rest
from kad.method.verification import Target
from kad.rules import CascadeRule, ProductRule, registry

# Numbers that no tie of equal tokens gives: where p is the threshold itself, rounding decides, and may.
NUMBERS = {"threshold": 0.37193, "budget": 0.61713, "margin": 0.03719, "weight": 0.37193, "plausibility": 0.0731}
RULES = [
    cls(**{field.name: NUMBERS[field.name] for field in dataclasses.fields(cls) if field.name in NUMBERS})
    for cls in registry().values()
    if cls.__module__.startswith("kad.")
]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ROWS = 8


@dataclasses.dataclass(frozen=True)
class Case:
    """Rows of three models, and a temperature."""

    rows: tuple[Tensor, Tensor, Tensor]
    temperature: float
    spread: float  # of the logits, over the temperature


@st.composite
def cases(draw: st.DrawFn, vocabularies: tuple[int, ...] = (1, 2, 3, 7, 60, 4096)) -> Case:
    vocab, dtype = draw(st.sampled_from(vocabularies)), draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    far = 1e4 if dtype is torch.float16 else 1e6
    found, spread = [], 0.0
    for _ in range(3):
        rows = torch.randn(ROWS, vocab, generator=generator, dtype=torch.float64)
        scale = draw(st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e3, far / 10]))
        rows = rows * scale + draw(st.sampled_from([0.0, 1e3, -1e3, far / 2, -far / 2])) * draw(st.booleans())
        if draw(st.booleans()):
            rows = rows.round(decimals=draw(st.sampled_from([0, 1])))  # ties
        if draw(st.booleans()):  # all but one, or about half of the tokens are impossible
            one = torch.randint(vocab, (ROWS, 1), generator=generator)
            lost = torch.rand(ROWS, vocab, generator=generator) < draw(st.sampled_from([0.5, 1.0]))
            rows = rows.masked_fill(lost.scatter(1, one, False), -torch.inf)
        found.append(rows.to(dtype))
        spread = max(spread, scale)
    temperature = draw(st.sampled_from([1.0, 1.0, 0.01, 0.7, 1000.0]))
    return Case((found[0], found[1], found[2]), temperature, spread / temperature)


def summed(log_pi: Tensor) -> Tensor:
    return log_pi.double().exp().sum(dim=-1)


@pytest.mark.parametrize("rule", RULES, ids=str)
@settings(max_examples=15, deadline=None)
@given(case=cases())
def test_pi_sums_to_one_and_keeps_its_first_choice(rule: kad.rules.Rule, case: Case) -> None:
    composition = Composition(rule, case.temperature)
    try:
        log_pi = compose(composition, *case.rows)
    except LogitsError:
        assert isinstance(rule, ProductRule)  # of models that agree on no token
        return
    exact = compose(composition, *(rows.double() for rows in case.rows))
    assert not log_pi.isnan().any()
    torch.testing.assert_close(summed(log_pi), torch.ones(ROWS, dtype=torch.float64), rtol=0, atol=2e-5)
    chosen = exact.gather(-1, log_pi.argmax(dim=-1, keepdim=True)).squeeze(-1)
    # Of two tokens whose difference a float32 at this distance cannot hold, either may be the first.
    assert (exact.amax(dim=-1) - chosen <= 1e-4 + 2e-6 * case.spread).all()


@pytest.mark.parametrize("rule", RULES, ids=str)
@settings(max_examples=6, deadline=None)
@given(case=cases((2, 60, 4096)), shift=st.sampled_from([1e5, -1e5, 1e6, -1e6]))
def test_a_shift_of_a_row_changes_nothing(rule: kad.rules.Rule, case: Case, shift: float) -> None:
    """What a shifted row holds, and the same taken back: in float32 the shift takes digits, and nothing else does."""
    for dtype in (torch.float64, torch.float32):
        moved = [rows.to(dtype) + shift for rows in case.rows]
        back = [rows - shift for rows in moved]
        try:
            expected = compose(Composition(rule, case.temperature), *back)
        except LogitsError:
            return
        found = compose(Composition(rule, case.temperature), *moved)
        torch.testing.assert_close(found.exp(), expected.exp(), rtol=0, atol=2e-5 + 2e-6 * case.spread)


@settings(max_examples=15, deadline=None)
@given(case=cases((1, 2, 7, 60)))
def test_what_moves_to_the_rest_is_deferred_wherever_the_row_stands(case: Case) -> None:
    base, aligned, _ = case.rows
    never = torch.arange(base.shape[-1]) % 2 == 1
    composition = Composition("dual:threshold=0.0", case.temperature)
    rows = move_to_rest(base, never, case.temperature)
    p, q = ((row.double() / case.temperature).softmax(dim=-1) for row in (base, aligned))
    expected = p * ~never + (p * never).sum(dim=-1, keepdim=True) * q
    torch.testing.assert_close(compose(composition, rows, aligned).double().exp(), expected, rtol=0, atol=3e-5)
    assert isinstance(rows, RowsWithRest)


@pytest.mark.parametrize("rule", [rule for rule in RULES if isinstance(rule, CascadeRule)], ids=str)
@settings(max_examples=12, deadline=None)
@given(case=cases((1, 2, 5)))
def test_a_verified_draft_follows_pi(rule: kad.rules.Rule, case: Case) -> None:
    """All drafts of all rows, enumerated: accepted, or replaced by a draw from what is left of pi."""
    composition = Composition(rule, case.temperature)
    models: Composed = composed(composition, *case.rows[:2])
    kept, alpha = models.cascade()
    q, log_pi = models.aligned.probs(), models.log_pi()
    for row in range(ROWS):
        emitted = torch.zeros_like(q[row], dtype=torch.float64)
        for draft in range(q.shape[-1]):
            if q[row, draft] == 0:
                continue  # never drafted
            target = Target(kept[row, None], alpha[row, None], q[row, None], torch.tensor([draft]))
            chance = target.ratio.clamp(max=1.0)
            left = target.follow(torch.tensor([0]), chance.new_ones(1))[:-1].double()
            emitted += q[row, draft].double() * (1.0 - chance.double()) * left / left.sum()
            emitted[draft] += (q[row, draft] * chance[0]).double()
        torch.testing.assert_close(emitted, log_pi[row].double().exp(), rtol=0, atol=3e-5)

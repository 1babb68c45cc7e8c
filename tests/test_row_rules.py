"""A rule for each row keeps what that rule keeps, to the bit; a mask finds an order in whatever a rule composes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kad
from kad.errors import RuleError
from kad.method.composition import compose, composed, deferred_mass
from kad.rules import RowRules, parse_rule, registry
from test_rules import THRESHOLDS, rules_of

MIXED = [
    "dual:threshold=0.05", "dual:threshold=0", "dual:threshold=1", "primal", "primal:budget=0.3", "primal:budget=1",
    "nudging:threshold=0.2", "nudging:threshold=0", "confidence_bet", "confidence_bet:margin=0",
    "confidence_bet:margin=0.3", "relative", "relative:margin=0.1", "aligned_only", "base_only",
]  # fmt: skip


def rows_of(count: int, vocab: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(vocab)
    scale = torch.logspace(-1, 1, count).unsqueeze(-1)
    base, aligned = (torch.randn(count, vocab, generator=generator) * scale * 3 for _ in range(2))
    base[:, 3] = base.amax(-1)  # a tie at the top
    aligned[::2, 5] = base[::2].amax(-1) + 2.0
    return [base.to(dtype), aligned.to(dtype)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [7, 300, 8192])
def test_every_row_goes_by_its_own_rule(vocab: int, dtype: torch.dtype) -> None:
    rules = [parse_rule(text) for text in MIXED]
    base, aligned = rows_of(len(rules), vocab, dtype)
    table = RowRules.of(rules)
    together, alpha = compose(table, base, aligned), deferred_mass(table, base, aligned)
    for i, rule in enumerate(rules):
        row = slice(i, i + 1)
        keep = composed(kad.Composition(rule), base[row], aligned[row]).keep()
        assert torch.equal(composed(kad.Composition(table), base, aligned).keep()[row], keep)
        torch.testing.assert_close(together[row], compose(rule, base[row], aligned[row]), rtol=1e-6, atol=5e-6)
        torch.testing.assert_close(alpha[row], deferred_mass(rule, base[row], aligned[row]), rtol=1e-6, atol=1e-7)


@settings(max_examples=150, deadline=None)
@given(st.lists(rules_of(THRESHOLDS), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_rows_are_picked_in_any_order_and_number(rules: list[kad.rules.Rule], random: object) -> None:
    count = 9
    numbers = torch.tensor([random.randrange(len(rules)) for _ in range(count)])  # type: ignore[attr-defined]
    base, aligned = rows_of(count, 40, torch.float64)
    picked = compose(RowRules.of(rules)[numbers], base, aligned)
    for i, number in enumerate(numbers.tolist()):
        alone = compose(rules[number], base[i : i + 1], aligned[i : i + 1])
        torch.testing.assert_close(picked[i : i + 1], alone, rtol=0, atol=1e-12)


def test_products_and_rules_of_users_go_their_own_way() -> None:
    assert not RowRules.takes(parse_rule("implicit_reward"))
    assert not RowRules.takes(parse_rule("mixture"))
    with pytest.raises(RuleError, match="Rule mixture:weight=0.5 is no threshold rule in numbers"):
        RowRules.of([parse_rule("dual"), parse_rule("mixture")])


@settings(max_examples=400, deadline=None)
@given(rules_of(list(registry())), st.integers(0, 10_000), st.sampled_from([0.1, 3.0, 40.0, 900.0]), st.booleans())
def test_no_mask_leaves_an_impossible_row(rule: kad.rules.Rule, seed: int, scale: float, holes: bool) -> None:
    """Any mask that leaves a token which p or q* allows leaves a possible one, in the order of the composed row."""
    generator = torch.Generator().manual_seed(seed)
    base, aligned, reference = (torch.randn(1, 12, generator=generator) * scale for _ in range(3))
    if holes:
        base[torch.rand(1, 12, generator=generator) < 0.4] = -torch.inf
        aligned[torch.rand(1, 12, generator=generator) < 0.4] = -torch.inf
        base[0, 0], aligned[0, 0] = 0.0, 0.0
    log_pi = compose(rule, base, aligned, reference)
    allowed = ((base > -torch.inf) | (aligned > -torch.inf))[0]
    assert bool(log_pi[0, allowed].isfinite().all())
    for token in allowed.nonzero()[:, 0].tolist():
        mask = torch.full((1, 12), -torch.inf)
        mask[0, token] = 0.0
        assert int((log_pi + mask).softmax(-1).argmax()) == token
    assert bool(log_pi.exp().sum() - 1 < 1e-4)


def test_implausible_tokens_keep_their_order_under_a_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    base, aligned, reference = (torch.randn(1, 30, generator=generator) for _ in range(3))
    base[0, 0] = 12.0
    rule = kad.rules.Contrastive(weight=0.5, plausibility=0.1)
    masked = compose(rule, base, aligned, reference)[0, 1:].double().log_softmax(-1)
    log_p, log_reference = base.double().log_softmax(-1)[0, 1:], reference.double().log_softmax(-1)[0, 1:]
    expected = (1.5 * log_p - 0.5 * log_reference).log_softmax(-1)
    torch.testing.assert_close(masked, expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize("scale", [1.0, 40.0, 900.0])
@pytest.mark.parametrize("name", registry())
def test_a_large_row_has_an_order_under_any_mask_too(name: str, scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randn(2, 8192, generator=generator) * scale for _ in range(3)]
    assert bool(compose(registry()[name](), *rows).isfinite().all())

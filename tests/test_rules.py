"""Rules as objects: parameters, strings, dicts, the registry; and their keep sets against the oracle."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import ClassVar

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import kad
import oracle
from kad.errors import RuleError
from kad.method.distribution import Distribution
from kad.method.rules import rule as rule_module
from kad.rules import CascadeRule, ThresholdRule, parse_rule, register, registry

CASCADES = [name for name, cls in registry().items() if issubclass(cls, CascadeRule)]
THRESHOLDS = [name for name, cls in registry().items() if issubclass(cls, ThresholdRule)]


def rows(max_size: int = 12) -> st.SearchStrategy[list[float]]:
    """Logits of one row: random, saturated, flat, tied, with -inf."""
    entry = st.one_of(
        st.floats(-8, 8).map(lambda x: round(x, 3)),  # equal or visibly different: near-ties hang on rounding
        st.sampled_from([0.0, 1.0, 2.0, 30.0, -30.0, float("-inf")]),
    )
    return st.lists(entry, min_size=2, max_size=max_size).filter(lambda row: max(row) > float("-inf"))


@st.composite
def pairs_of_rows(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    first = draw(rows())
    second = draw(rows().map(lambda row: (row * len(first))[: len(first)]).filter(lambda row: max(row) > float("-inf")))
    return first, second


@st.composite
def rules_of(draw: st.DrawFn, names: list[str]) -> kad.rules.Rule:
    cls = registry()[draw(st.sampled_from(names))]
    values = {}
    for field in fields(cls):
        low, high = field.metadata["range"]
        values[field.name] = draw(st.floats(max(low, -3.0), min(high, 3.0)))
    return cls(**values)


def near_a_decision(rule: kad.rules.Rule, p: list[float], q: list[float]) -> bool:
    """Whether the oracle's keep set hangs on less than a rounding error: then float32 and float64 may differ."""
    reference = oracle.KEEP[rule.name](p, q, *parameters(rule))
    for factor in (1 - 1e-5, 1 + 1e-5):
        nudged = [v * factor + (factor - 1) * 1e-6 for v in parameters(rule)]
        if rule.name in ("relative", "confidence_bet"):
            nudged = [v + (factor - 1) for v in parameters(rule)]
        nudged = [max(v, 0.0) if rule.name in ("primal", "lp") else v for v in nudged]
        moved = oracle.KEEP[rule.name](p, q, *nudged)
        if any(abs(a - b) > 1e-3 for a, b in zip(reference, moved, strict=True)):
            return True
    return False


def parameters(rule: kad.rules.Rule) -> list[float]:
    return [value for key, value in rule.to_dict().items() if key != "rule"]


@pytest.mark.parametrize("name", registry())
def test_every_rule_round_trips_through_its_string_and_json(name: str) -> None:
    rule = registry()[name]()
    assert parse_rule(str(rule)) == rule
    assert parse_rule(json.loads(json.dumps(rule.to_dict()))) == rule
    assert rule.summary
    assert rule.source


def test_the_string_form_is_the_documented_one() -> None:
    assert str(kad.rules.Dual(threshold=0.4)) == "dual:threshold=0.4"
    assert parse_rule("dual:threshold=0.4") == kad.rules.Dual(threshold=0.4)
    assert parse_rule(" product : base=2, aligned=0.5 ".replace(" : ", ":")) == kad.rules.Product(2.0, 0.5)
    assert str(kad.rules.AlignedOnly()) == "aligned_only"


def test_the_name_of_the_only_parameter_may_be_left_out() -> None:
    assert str(parse_rule("dual:0.6")) == "dual:threshold=0.6"
    assert parse_rule(" primal: 0.8 ") == kad.rules.Primal(budget=0.8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dula:threshold=0.4", r"Unknown rule 'dula'. Choose from: dual, primal"),
        ("dual:treshold=0.4", r"dual has no parameter 'treshold'. It takes: threshold"),
        ("dual:threshold=1.4", r"dual: threshold must be a number from 0 to 1, but is 1.4"),
        ("dual:threshold=nan", r"threshold must be a number from 0 to 1, but is nan"),
        ("dual:threshold=much", r"threshold must be a number, but is 'much'"),
        ("product:0.4", r"needs name=value instead of '0.4'"),
        ("aligned_only:0.4", r"needs name=value instead of '0.4'"),
        ("dual:0.4,0.5", r"needs name=value instead of '0.4'"),
        ("dual:much", r"threshold must be a number, but is 'much'"),
        ("dual:threshold=0.4,threshold=0.5", r"repeats 'threshold=0.5'"),
        ("primal:budget=-0.1", r"primal: budget must be a number from 0 to 1, but is -0.1"),
        ("confidence_bet:margin=-0.2", r"margin must be a number from 0 to 1, but is -0.2. The paper's sign: p >= max"),
        ("product:aligned=-1", r"aligned must be a number >= 0, but is -1"),
        ("product:aligned=inf", r"aligned must be finite"),
        ("aligned_only:x=1", r"aligned_only has no parameter 'x'. It takes: none"),
    ],
)
def test_a_bad_rule_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        parse_rule(text)


def test_a_rule_that_is_no_rule() -> None:
    with pytest.raises(RuleError, match="A rule is a string, a dict or a Rule, but got int: 3"):
        parse_rule(3)  # type: ignore[arg-type]


def test_a_user_registers_a_rule_of_their_own() -> None:
    @register
    @dataclass(frozen=True)
    class Half(CascadeRule):
        name: ClassVar[str] = "half_for_this_test"
        summary: ClassVar[str] = "keep half of everything"
        source: ClassVar[str] = "this test"

        def keep(self, log_p: torch.Tensor, log_aligned: torch.Tensor) -> torch.Tensor:
            return torch.full_like(log_p, 0.5)

    try:
        p, q = torch.randn(3, 7), torch.randn(3, 7)
        ours = kad.compose(parse_rule("half_for_this_test"), p, q)
        torch.testing.assert_close(ours, kad.compose(kad.rules.Mixture(0.5), p, q))
        with pytest.raises(RuleError, match="The rule name 'dual' is taken by Dual"):
            register(type("Other", (Half,), {"name": "dual"}))
        with pytest.raises(RuleError, match="must be a lower-case identifier, but is 'a b'"):
            register(type("Other", (Half,), {"name": "a b"}))
    finally:
        rule_module._REGISTRY.pop("half_for_this_test")


@settings(max_examples=400, deadline=None)
@given(rules_of(CASCADES), pairs_of_rows())
def test_keep_is_the_oracles(rule: CascadeRule, logits: tuple[list[float], list[float]]) -> None:
    p, q = oracle.softmax(logits[0]), oracle.softmax(logits[1])
    assume(not near_a_decision(rule, p, q))
    log_p, log_aligned = (torch.tensor(row, dtype=torch.float64).log() for row in (p, q))
    expected = torch.tensor(oracle.KEEP[rule.name](p, q, *parameters(rule)), dtype=torch.float64)
    kept = rule.keep(log_p, log_aligned)
    positive = torch.tensor(p) > 0  # keeping a token of probability zero or not is the same
    torch.testing.assert_close(kept[positive], expected[positive], atol=1e-9, rtol=0)


@settings(max_examples=200, deadline=None)
@given(rules_of(THRESHOLDS), pairs_of_rows())
def test_a_threshold_rule_keeps_exactly_the_tokens_at_or_above_tau(
    rule: ThresholdRule, logits: tuple[list[float], list[float]]
) -> None:
    base_rows, aligned = (Distribution.of(torch.tensor([row], dtype=torch.float64)) for row in logits)
    cutoff = rule.cutoff(base_rows, aligned)
    kept = rule.keep(base_rows.logits, aligned.logits)
    assert torch.equal(kept.bool(), base_rows.logits >= cutoff.unsqueeze(-1))
    p, tau = base_rows.log_probs().exp(), rule.log_tau(base_rows, aligned).exp().unsqueeze(-1)
    assert bool((p[kept.bool()] >= tau.expand_as(p)[kept.bool()] * (1 - 1e-12)).all())
    assert bool((p[~kept.bool()] < tau.expand_as(p)[~kept.bool()] * (1 + 1e-12)).all())


@settings(max_examples=300, deadline=None)
@given(rows(20), st.floats(0, 1))
def test_primal_defers_at_most_the_budget_and_could_not_defer_the_next_token(row: list[float], budget: float) -> None:
    log_p = torch.tensor(oracle.softmax(row), dtype=torch.float64).log()
    p = log_p.exp()
    kept = kad.rules.Primal(budget).keep(log_p, log_p).bool()
    deferred = float(p[~kept].sum())
    assert deferred <= budget + 1e-12
    if bool((kept & (p > 0)).any()):
        critical = p[kept & (p > 0)].min()
        assert deferred + float(p[p == critical].sum()) > budget - 1e-12


def test_tokens_of_equal_p_share_one_fate() -> None:
    log_p = torch.tensor([0.3, 0.3, 0.2, 0.1, 0.1]).log()
    assert kad.rules.Primal(0.65).keep(log_p, log_p).tolist() == [1, 1, 0, 0, 0]
    assert kad.rules.Primal(0.15).keep(log_p, log_p).tolist() == [1, 1, 1, 1, 1]
    fraction = kad.rules.LinearProgram(0.7).keep(log_p, log_p)
    torch.testing.assert_close(fraction, torch.tensor([0.5, 0.5, 0, 0, 0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("budget", [0.05, 0.5, 0.9, 0.999])
def test_primal_on_a_flat_row_of_a_real_vocabulary(budget: float) -> None:
    """The head is nearly the whole vocabulary: the guess must grow, and no token may be lost."""
    logits = torch.rand(2, 151_936, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e-3
    kept = kad.rules.Primal(budget).keep(logits, logits).bool()
    p = logits.softmax(-1)
    for row in range(2):
        deferred = float(p[row][~kept[row]].sum())
        assert deferred <= budget + 1e-9
        assert deferred + float(p[row][kept[row]].min()) > budget - 1e-9

"""log pi, alpha, beta and origin against the float64 oracle, in every regime where they could differ."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import assume, given, settings

import kad
import oracle
from kad.errors import LogitsError, RuleError, VocabularyError
from kad.method.composition import (
    acceptance,
    compose,
    composed,
    deferred_mass,
    origin_shares,
)
from kad.method.distribution import RowsWithRest, move_to_rest
from kad.rules import CascadeRule, Rule, ThresholdRule, registry
from test_rules import CASCADES, THRESHOLDS, near_a_decision, pairs_of_rows, parameters, rows, rules_of

DOUBLE = torch.float64


def expected_pi(rule: Rule, p: list[float], q: list[float], r: list[float]) -> list[float]:
    if isinstance(rule, CascadeRule):
        return oracle.cascade(p, q, oracle.KEEP[rule.name](p, q, *parameters(rule)))
    if rule.name == "contrastive":
        return oracle.contrastive(p, q, r, *parameters(rule))
    return oracle.product(p, q, r, *parameters(rule))


@settings(max_examples=400, deadline=None)
@given(rules_of(CASCADES), pairs_of_rows())
def test_cascades_are_the_oracles(rule: CascadeRule, logits: tuple[list[float], list[float]]) -> None:
    p, q = oracle.softmax(logits[0]), oracle.softmax(logits[1])
    assume(not near_a_decision(rule, p, q))
    pi = expected_pi(rule, p, q, q)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        base, aligned = (torch.tensor(row, dtype=dtype) for row in logits)
        log_pi = compose(rule, base, aligned)
        assert log_pi.dtype == dtype
        torch.testing.assert_close(log_pi.exp().double(), torch.tensor(pi, dtype=DOUBLE), atol=tolerance, rtol=0)
        assert abs(float(log_pi.exp().sum()) - 1) < 10 * tolerance


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("vocab", [6, 192], ids=["rows", "lists"])
@pytest.mark.parametrize("name", [name for name in CASCADES if name != "lp"])
def test_mass_of_tokens_that_are_never_kept_is_deferred(
    name: str, vocab: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """p without these tokens sums to less than one. The rule reads it as it is, and what is missing goes to q*."""
    monkeypatch.setattr("kad.method.distribution._LARGE", 64)
    monkeypatch.setattr("kad.method.distribution._SMALLEST_BLOCK", 8)
    monkeypatch.setattr("kad.method.distribution._LARGEST_BLOCK", 16)
    generator = torch.Generator().manual_seed(vocab)
    rule = registry()[name]()
    for _ in range(10):
        base, aligned = 4 * torch.randn(2, vocab, generator=generator, dtype=DOUBLE)
        never = torch.rand(vocab, generator=generator) < 0.3
        p, q = ((row / temperature).softmax(-1) for row in (base, aligned))
        rest, left = float(p[never].sum()), p.masked_fill(never, 0.0).tolist()
        if name == "primal":
            order = sorted(left)
            tails = zip(order, [rest, *(rest + total for total in accumulate(order))], strict=False)
            tau = max((value for value, tail in tails if tail <= parameters(rule)[0]), default=0.0)
            keep = [float(v >= tau) for v in left]
        else:
            keep = oracle.KEEP[name](left, q.tolist(), *parameters(rule))
        kept = torch.tensor(keep, dtype=DOUBLE) * torch.tensor(left, dtype=DOUBLE)
        composition = kad.Composition(rule, temperature)
        rows = move_to_rest(base, never, temperature), aligned
        alpha = 1 - float(kept.sum())
        torch.testing.assert_close(compose(composition, *rows).exp(), kept + alpha * q, atol=1e-12, rtol=0)
        assert float(deferred_mass(composition, *rows)) == pytest.approx(alpha, abs=1e-12)
        assert float(origin_shares(composition, *rows)[0][never].sum()) == 0.0


@pytest.mark.parametrize("vocab", [6, 192], ids=["rows", "lists"])
@pytest.mark.parametrize("name", CASCADES)
def test_a_rest_at_both_ends(name: str, vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a rest, rows are as they were. Where p is all rest, pi is q*. A row does not depend on the others."""
    monkeypatch.setattr("kad.method.distribution._LARGE", 64)
    monkeypatch.setattr("kad.method.distribution._SMALLEST_BLOCK", 8)
    base, aligned = torch.randn(2, 3, vocab, generator=torch.Generator().manual_seed(vocab), dtype=DOUBLE) * 4
    rows = RowsWithRest(base, torch.full((3, 1), -torch.inf, dtype=DOUBLE))
    for quantity in (compose, deferred_mass, acceptance):
        torch.testing.assert_close(quantity(name, rows, aligned), quantity(name, base, aligned))
    rows.logits[1], rows.rest[1] = -torch.inf, 0.0
    log_pi = compose(name, rows, aligned)
    torch.testing.assert_close(log_pi[1], aligned[1].log_softmax(-1))
    torch.testing.assert_close(log_pi[2:], compose(name, rows[2:], aligned[2:]), rtol=1e-9, atol=1e-9)
    assert deferred_mass(name, rows, aligned)[1] == pytest.approx(1.0)
    assert not bool(origin_shares(name, rows, aligned)[0][1].any())


@settings(max_examples=200, deadline=None)
@given(pairs_of_rows(), rows(), rules_of([n for n in registry() if registry()[n].needs_reference]))
def test_products_are_the_oracles(logits: tuple[list[float], list[float]], third: list[float], rule: Rule) -> None:
    finite = [[max(x, -20.0) for x in row] for row in (*logits, (third * len(logits[0]))[: len(logits[0])])]
    p, q, r = (oracle.softmax(row) for row in finite)
    if rule.name == "contrastive":
        assume(all(abs(v - parameters(rule)[1] * max(p)) > 1e-9 for v in p))
    if rule.name == "product":
        assume(all(abs(v - parameters(rule)[2] * max(q)) > 1e-9 for v in q))
    pi = torch.tensor(expected_pi(rule, p, q, r), dtype=DOUBLE)
    log_pi = compose(rule, *(torch.tensor(row, dtype=DOUBLE) for row in finite))
    torch.testing.assert_close(log_pi.exp(), pi, atol=1e-12, rtol=0)


@settings(max_examples=300, deadline=None)
@given(rules_of(THRESHOLDS), pairs_of_rows())
def test_alpha_and_beta_identities(rule: ThresholdRule, logits: tuple[list[float], list[float]]) -> None:
    p, q = oracle.softmax(logits[0]), oracle.softmax(logits[1])
    assume(not near_a_decision(rule, p, q))
    keep = oracle.KEEP[rule.name](p, q, *parameters(rule))
    pi = oracle.cascade(p, q, keep)
    base, aligned = (torch.tensor([row], dtype=DOUBLE) for row in logits)
    alpha = deferred_mass(rule, base, aligned)
    beta = acceptance(rule, base, aligned)
    assert abs(float(alpha) - oracle.deferred_mass(p, keep)) < 1e-12
    assert abs(float(beta) - oracle.acceptance(pi, q)) < 1e-12
    assert float(beta) >= float(alpha) - 1e-12
    # pi_v / q*_v = alpha + k_v p_v / q*_v: a deferred token is accepted with probability exactly alpha.
    kept = composed(kad.Composition(rule), base, aligned).keep()[0]
    assert {i for i, k in enumerate(kept.tolist()) if k and p[i] > 0} == {
        i for i, k in enumerate(keep) if k and p[i] > 0
    }


@settings(max_examples=150, deadline=None)
@given(rules_of(CASCADES), pairs_of_rows())
def test_origin_shares_sum_to_one_and_are_the_two_terms(
    rule: CascadeRule, logits: tuple[list[float], list[float]]
) -> None:
    assume(not near_a_decision(rule, *map(oracle.softmax, logits)))
    base, aligned = (torch.tensor(row, dtype=DOUBLE) for row in logits)
    from_base, from_aligned = origin_shares(rule, base, aligned)
    torch.testing.assert_close(from_base + from_aligned, torch.ones_like(base))
    keep = rule.keep(base.log_softmax(-1), aligned.log_softmax(-1))
    pi = compose(rule, base, aligned).exp()
    torch.testing.assert_close(from_base * pi, keep * base.softmax(-1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", registry())
@pytest.mark.parametrize("vocab", [5, 130, 2000])
def test_rows_do_not_depend_on_the_other_rows_of_a_batch(name: str, vocab: int) -> None:
    generator = torch.Generator().manual_seed(7)
    batch = [torch.randn(4, 3, vocab, generator=generator) * scale for scale in (4.0, 3.0, 3.0)]
    batch[0][0, 0, 1] = 60.0  # a saturated row among others
    batch[0][1, 1] = 0.0  # a flat one
    together = compose(registry()[name](), *batch)
    for i in range(4):
        for j in range(3):
            alone = compose(registry()[name](), *(x[i, j] for x in batch))
            torch.testing.assert_close(together[i, j], alone, atol=2e-5, rtol=1e-6)


@pytest.mark.supports("Tensors", "composition")
@pytest.mark.parametrize("name", registry())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "scale", [0.0, 4.0, *(pytest.param(scale, marks=pytest.mark.slow) for scale in (0.01, 1.0, 40.0))]
)
def test_a_real_vocabulary_in_single_and_half_precision(name: str, dtype: torch.dtype, scale: float) -> None:
    """151,936 tokens, from flat to saturated, against the dense definition in float64 on the same rounded logits."""
    generator = torch.Generator().manual_seed(3)
    logits = [(torch.randn(2, 151_936, generator=generator) * scale).to(dtype) for _ in range(3)]
    rule = registry()[name]()
    log_pi = compose(rule, *logits)
    p, q, r = (x.double().log_softmax(-1) for x in logits)
    if isinstance(rule, CascadeRule):
        if scale == 0.0 and name in ("primal", "lp"):
            keep = rule.keep(logits[0].float(), logits[1].float()).double()  # all tied: any rounding decides
        else:
            keep = rule.keep(p, q)
        pi = keep * p.exp() + ((1 - keep) * p.exp()).sum(-1, keepdim=True) * q.exp()
    else:
        pi = rule.combine(p, q, r).softmax(-1)  # type: ignore[attr-defined]
    assert float((log_pi.double().exp() - pi).abs().sum(-1).max()) < 1e-4
    assert bool((log_pi <= 5e-5).all())  # an ulp of logits near 170


def test_saturated_p_keeps_the_relative_precision_of_what_it_defers() -> None:
    """p sure of one token: alpha is 1e-9, and log pi of a deferred token must still be right: grammar masks need it."""
    base = torch.zeros(1, 1000)
    base[0, 7] = 28.0
    aligned = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))
    for rule in (kad.rules.Dual(0.4), kad.rules.Primal(0.9), kad.rules.Relative(0.0), kad.rules.ConfidenceBet(0.0)):
        exact = compose(rule, base.double(), aligned.double())
        torch.testing.assert_close(compose(rule, base, aligned).double(), exact, atol=2e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_base_only_is_p_and_aligned_only_is_q(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    base, aligned = (torch.randn(3, 4, 5000, generator=generator).to(dtype) * 5 for _ in range(2))
    bits = 4 * torch.finfo(dtype).eps * 30
    for rule, row in ((kad.rules.BaseOnly(), base), (kad.rules.AlignedOnly(), aligned)):
        torch.testing.assert_close(compose(rule, base, aligned), row.log_softmax(-1), atol=bits, rtol=0)


def test_the_deferral_temperature_divides_before_composing() -> None:
    base, aligned = torch.randn(6, 50), torch.randn(6, 50)
    cold = compose(kad.rules.Dual(0.3), base, aligned, deferral_temperature=0.5)
    torch.testing.assert_close(cold, compose(kad.rules.Dual(0.3), base / 0.5, aligned / 0.5))
    for bad in (0.0, -1.0, 0.0099, 1001, float("nan"), float("inf")):
        with pytest.raises(RuleError, match="deferral_temperature must be a number from 0.01 to 1000"):
            compose(kad.rules.Dual(), base, aligned, deferral_temperature=bad)


def test_a_composition_is_named_by_a_string_a_dict_a_rule_or_itself() -> None:
    dual = kad.rules.Dual(0.3)
    wanted = kad.Composition(dual, 2.0)
    for named in ("dual:threshold=0.3", {"rule": "dual", "threshold": 0.3}, dual, wanted):
        assert kad.Composition.of(named, 2.0) == wanted
        assert kad.Composition.of(named).deferral_temperature == (2.0 if named is wanted else 1.0)
    assert kad.Composition("dual:threshold=0.3", 2) == wanted  # type: ignore[arg-type]
    base, aligned = torch.randn(3, 9), torch.randn(3, 9)
    assert torch.equal(compose("dual:threshold=0.3", base, aligned), compose(dual, base, aligned))


@pytest.mark.supports("Tensors", "deferral temperature")
@pytest.mark.parametrize("name", registry())
def test_every_quantity_respects_the_deferral_temperature(name: str) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = [3 * torch.randn(4, 40, generator=generator, dtype=DOUBLE) for _ in range(3)]
    divided = [row / 3.0 for row in logits]
    rule = registry()[name]()
    warm = kad.Composition(rule, 3.0)
    quantities = [compose, acceptance]
    if isinstance(rule, CascadeRule):
        quantities += [
            lambda c, base, aligned, _: deferred_mass(c, base, aligned),
            lambda c, base, aligned, _: torch.stack(origin_shares(c, base, aligned)),
        ]
    for quantity in quantities:
        torch.testing.assert_close(quantity(warm, *logits), quantity(rule, *divided), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(compose(warm, *logits), compose(rule, *logits))


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_users_rule_that_keeps_more_than_all_or_less_than_nothing_is_an_error(value: float) -> None:
    @dataclass(frozen=True)
    class Wrong(CascadeRule):
        name: ClassVar[str] = "wrong"

        def keep(self, log_p: torch.Tensor, log_aligned: torch.Tensor) -> torch.Tensor:
            return torch.full_like(log_p, 0.5).index_fill_(-1, torch.tensor([3]), value)

    for quantity in (compose, deferred_mass, origin_shares, acceptance):
        with pytest.raises(RuleError, match=r"keep probabilities of rule wrong must lie in \[0, 1\]"):
            quantity(Wrong(), torch.randn(2, 6), torch.randn(2, 6))


def test_inputs_are_left_as_they_were() -> None:
    logits = [torch.randn(3, 300) * 5 for _ in range(3)]
    copies = [x.clone() for x in logits]
    for cls in registry().values():
        compose(cls(), *logits)
    assert all(torch.equal(a, b) for a, b in zip(logits, copies, strict=True))


@pytest.mark.parametrize("text", ["dual:threshold=0.1", "primal:budget=0.5", "confidence_bet", "base_only"])
def test_a_threshold_rule_has_the_gradient_of_its_definition(text: str) -> None:
    rule = kad.parse_rule(text)
    assert isinstance(rule, CascadeRule)
    generator = torch.Generator().manual_seed(11)
    logits = [(2 * torch.randn(3, 40, generator=generator, dtype=DOUBLE)).requires_grad_() for _ in range(2)]
    weights = torch.randn(3, 40, generator=generator, dtype=DOUBLE)
    log_p, log_aligned = (x.log_softmax(-1) for x in logits)
    keep = rule.keep(log_p.detach(), log_aligned.detach())
    pi = keep * log_p.exp() + ((1 - keep) * log_p.exp()).sum(-1, keepdim=True) * log_aligned.exp()
    expected = torch.autograd.grad((weights * pi.log()).sum(), logits)
    found = torch.autograd.grad((weights * compose(rule, *logits)).sum(), logits)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def test_bad_input_gets_a_clear_error() -> None:
    good = torch.zeros(2, 5)
    bad = good.clone()
    bad[1, 3] = float("nan")
    with pytest.raises(LogitsError, match=r"aligned_logits of shape .2, 5.: row 1 has NaN at token 3"):
        compose(kad.rules.Dual(), good, bad)
    with pytest.raises(VocabularyError, match=r"must have one shape .*base_logits \(2, 5\), aligned_logits \(2, 6\)"):
        compose(kad.rules.Dual(), good, torch.zeros(2, 6))
    with pytest.raises(VocabularyError, match=r"base_logits \(2, 6\), aligned_logits \(2, 5\)"):
        compose(kad.rules.Dual(), torch.zeros(2, 6), good)  # one more token is no rest
    with pytest.raises(LogitsError, match=r"The rest of base_logits must have the shape \(2, 1\).* has \(2, 5\)"):
        compose(kad.rules.Dual(), RowsWithRest(good, good), good)
    with pytest.raises(LogitsError, match=r"base_logits of shape .2, 5.: row 1 has NaN at its rest"):
        compose(kad.rules.Dual(), RowsWithRest(good, bad[:, 3:4]), good)
    with pytest.raises(LogitsError, match=r"aligned_logits must be a torch\.Tensor, but is .*RowsWithRest"):
        compose(kad.rules.Dual(), good, RowsWithRest(good, good[:, :1]))  # type: ignore[arg-type]
    with pytest.raises(RuleError, match="Rule implicit_reward needs the reference model's logits"):
        compose(kad.rules.ImplicitReward(), good, good)
    with pytest.raises(RuleError, match="Only cascades have origin shares; implicit_reward is not one"):
        origin_shares(kad.rules.ImplicitReward(), good, good)
    nothing = torch.tensor([[0.0, -torch.inf]]), torch.tensor([[-torch.inf, 0.0]])
    with pytest.raises(LogitsError, match="the product of the models' probabilities"):
        compose(kad.rules.ImplicitReward(), *nothing, torch.zeros(1, 2))


@pytest.mark.parametrize("rule", ["dual", "confidence_bet", "primal"])
def test_on_a_cpu_long_rows_are_mended_where_p_is_kept(rule: str) -> None:
    """49,152 tokens; p so sure that alpha underflows; tokens that q* all but excludes. Gradients take the other way."""
    generator = torch.Generator().manual_seed(0)
    base, aligned = 3.0 * torch.randn(2, 3, 49_152, generator=generator)
    base[0, 7], base[1:, 7] = 200.0, 15.0
    aligned[2, ::2] = -20_000.0
    whole = compose(rule, base.clone().requires_grad_(), aligned).detach()
    for found, expected in ((compose(rule, base, aligned), whole), (compose(rule, base[1:], aligned[1:]), whole[1:])):
        possible = expected > -9_000.0
        torch.testing.assert_close(found[possible], expected[possible], rtol=1e-5, atol=1e-5)
        # Of excluded tokens only the order counts. The floor is a maximum here and a sum there.
        torch.testing.assert_close(found[~possible], expected[~possible], rtol=0, atol=0.7)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda log_p: log_p[..., :1], "keep() of rule somebodys must give a tensor of shape (2, 5), but gave (2, 1)"),
        (lambda log_p: 0.5, "must give a tensor of shape (2, 5), but gave float"),
        (lambda log_p: 1 / 0, "keep() of rule somebodys failed: ZeroDivisionError: division by zero. Mend the rule."),
    ],
)
def test_a_rule_of_somebody_else_that_fails_is_a_sentence(answer: Any, message: str) -> None:
    @dataclasses.dataclass(frozen=True)
    class Somebodys(kad.rules.CascadeRule):
        name: ClassVar[str] = "somebodys"

        def keep(self, log_p: torch.Tensor, log_aligned: torch.Tensor) -> Any:
            return answer(log_p)

    with pytest.raises(RuleError, match=re.escape(message)):
        compose(Somebodys(), torch.randn(2, 5), torch.randn(2, 5))

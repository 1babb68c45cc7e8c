"""Verification as pure tensors: sparse against dense, block against token, against definitions in closed form."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from kad.composition import compose, compose_distributions, deferred_mass
from kad.distribution import Distribution
from kad.rules import ThresholdRule, parse_rule
from kad.speculation.randomness import TorchRandomness
from kad.verification import (
    DenseTarget,
    SparseTarget,
    draw_kept,
    draw_token,
    first_choice,
    stack_rows,
    target_of,
    verify_block,
    verify_greedy,
    verify_tokens,
    wide,
)

THRESHOLD_RULES = [
    "dual:threshold=0.05", "dual:threshold=0.4", "primal", "primal:budget=0.5", "nudging:threshold=0.2",
    "confidence_bet", "confidence_bet:margin=-0.2", "relative:margin=0.1", "aligned_only", "base_only",
]  # fmt: skip


def rows(
    count: int, vocab: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Distribution, Distribution]:
    """Rows of p and q* that agree in part; some flat, some sharp, some with impossible tokens."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(count, vocab, generator=generator, dtype=torch.float64)
    base *= torch.logspace(-1, 1.2, count, dtype=torch.float64).unsqueeze(-1)
    aligned = 0.7 * base + torch.randn(count, vocab, generator=generator, dtype=torch.float64)
    base[:, 1] = -torch.inf
    return Distribution.from_logits(base.to(dtype)), Distribution.from_logits(aligned.to(dtype))


def dense(rule: ThresholdRule, base: Distribution, aligned: Distribution, drafts: torch.Tensor) -> DenseTarget:
    return DenseTarget(compose_distributions(rule, base, aligned), aligned.log_probs(), drafts)


@pytest.mark.parametrize("vocab", [5, 1000, 49152])
@pytest.mark.parametrize("text", THRESHOLD_RULES)
def test_sparse_target_is_the_dense_one(text: str, vocab: int) -> None:
    rule = parse_rule(text)
    assert isinstance(rule, ThresholdRule)
    base, aligned = rows(6, vocab)
    drafts = torch.stack([draw_token(_row(aligned, i), TorchRandomness()) for i in range(6)])
    drafts[0] = base.logits[0].argmax()
    found, truth = target_of(rule, base, aligned, drafts), dense(rule, base, aligned, drafts)
    assert isinstance(found, DenseTarget if wide(base, rule.cutoff(base, aligned)) else SparseTarget)
    torch.testing.assert_close(found.ratio, truth.ratio, rtol=1e-9, atol=1e-12)
    for scale in (torch.ones(6, dtype=torch.float64), torch.linspace(0.05, 0.9, 6, dtype=torch.float64)):
        torch.testing.assert_close(found.excess(scale), truth.excess(scale), rtol=1e-7, atol=1e-12)
        for row in range(6):
            tokens, weights = found.residual(row, float(scale[row]))
            spread = torch.zeros(vocab, dtype=torch.float64).index_add_(0, tokens, weights)
            if float(truth.excess(scale)[row]) > 1e-9:
                torch.testing.assert_close(spread, truth.residual(row, float(scale[row]))[1], rtol=1e-6, atol=1e-12)


def test_rules_that_keep_most_of_a_large_vocabulary_take_the_dense_path() -> None:
    base, aligned = rows(4, 49152)
    base_only = parse_rule("base_only")
    assert isinstance(base_only, ThresholdRule)
    assert wide(base, base_only.cutoff(base, aligned))


def test_no_buffer_of_probabilities_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = parse_rule("dual:threshold=0.4")
    assert isinstance(rule, ThresholdRule)
    base, aligned = rows(6, 49152)
    drafts = aligned.logits.argmax(dim=-1)

    class Sizes(torch.overrides.TorchFunctionMode):
        largest = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple) else (out,):
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in inputs:
                    self.largest = max(self.largest, tensor.numel())
            return out

    inputs = {x.untyped_storage().data_ptr() for d in (base, aligned) for x in vars(d).values()}
    with Sizes() as sizes:
        verify_block(target_of(rule, base, aligned, drafts), TorchRandomness())
    assert sizes.largest < 49152 / 4


def test_rejecting_draws_a_kept_token_and_stops_at_the_first_failure() -> None:
    rule = parse_rule("dual:threshold=0.4")
    assert isinstance(rule, ThresholdRule)
    logits = torch.tensor([[5.0, 0.0, 0.0], [0.0, 0.0, 5.0]], dtype=torch.float64)
    base, aligned = Distribution.from_logits(logits), Distribution.from_logits(logits.flip(-1))
    drafts = torch.tensor([2, 0])

    class Reject:
        def leading(self, probabilities):
            return 0

        last = leading
        draw = staticmethod(lambda weights: weights.argmax())

    for verifier in (verify_tokens, verify_block):
        verdict = verifier(target_of(rule, base, aligned, drafts), Reject())
        assert verdict.accepted == 0
        assert int(verdict.correction) == 0
        assert len(verdict.chance) == 1


def _expected_accepted(verifier, pi: torch.Tensor, q: torch.Tensor, window: int) -> float:
    """The expected number of accepted drafts of an i.i.d. window, over every window and every coin."""
    vocab, total = len(pi), 0.0

    class Expectation:
        value = 0.0

        def leading(self, probabilities):
            self.value = sum(math.prod(probabilities[: i + 1]) for i in range(len(probabilities)))
            return len(probabilities)

        def last(self, probabilities):
            # The i-th prefix is within the longest one that stands unless every coin from i on fails.
            self.value = sum(1 - math.prod(1 - p for p in probabilities[i:]) for i in range(len(probabilities)))
            return len(probabilities)

    for drafts in itertools.product(range(vocab), repeat=window):
        expectation = Expectation()
        tokens = torch.tensor(drafts)
        verifier(DenseTarget(pi.log().expand(window, -1), q.log().expand(window, -1), tokens), expectation)
        total += expectation.value * math.prod(float(q[t]) for t in drafts)
    return total


@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_token_verification_accepts_beta_and_blocks_accept_more(window: int) -> None:
    pi = torch.tensor([0.55, 0.3, 0.15], dtype=torch.float64)
    q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    beta = float(torch.minimum(pi, q).sum())
    by_token = _expected_accepted(verify_tokens, pi, q, window)
    by_block = _expected_accepted(verify_block, pi, q, window)
    assert by_token == pytest.approx(sum(beta**i for i in range(1, window + 1)), abs=1e-12)
    if window == 1:
        assert by_block == pytest.approx(by_token, abs=1e-12)
    else:
        assert by_block > by_token + 1e-3


def test_greedy_stops_at_the_first_difference() -> None:
    drafts = torch.tensor([4, 7, 1])
    verdict = verify_greedy(torch.tensor([4, 2, 1]), drafts)
    assert (verdict.accepted, int(verdict.correction), verdict.chance) == (1, 2, [1.0, 0.0])
    whole = verify_greedy(drafts.clone(), drafts)
    assert (whole.accepted, whole.correction, whole.chance) == (3, None, [1.0, 1.0, 1.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("vocab", [5, 1000, 49152])
@pytest.mark.parametrize("text", THRESHOLD_RULES)
def test_first_choice_is_the_argmax_of_pi(text: str, vocab: int, dtype: torch.dtype) -> None:
    rule = parse_rule(text)
    assert isinstance(rule, ThresholdRule)
    base, aligned = rows(12, vocab, seed=3, dtype=dtype)
    found, alpha = first_choice(rule, base, aligned, aligned.logits.argmax(dim=-1))
    if alpha is not None:
        expected = deferred_mass(rule, base.logits, aligned.logits)
        torch.testing.assert_close(alpha, expected, rtol=1e-4, atol=1e-6)
    assert found.tolist() == compose(rule, base.logits, aligned.logits).argmax(dim=-1).tolist()


def test_first_choice_breaks_ties_as_argmax_does() -> None:
    rule = parse_rule("dual:threshold=0.2")
    assert isinstance(rule, ThresholdRule)
    logits = torch.tensor([[0.0, 3.0, 3.0, 0.0], [3.0, 0.0, 0.0, 3.0]])
    base, aligned = Distribution.from_logits(logits), Distribution.from_logits(torch.zeros(2, 4))
    assert first_choice(rule, base, aligned, torch.tensor([0, 0]))[0].tolist() == [1, 0]


@pytest.mark.parametrize("text", ["dual:threshold=0.2", "primal:budget=0.5", "nudging:threshold=0.9", "base_only"])
def test_the_bonus_draw_needs_no_aligned_row(text: str) -> None:
    """P(u kept) = sum k p, and a kept u is distributed as k p: all outcomes with their weights."""
    rule = parse_rule(text)
    assert isinstance(rule, ThresholdRule)
    assert not rule.reads_aligned
    base, _ = rows(3, 30)
    for i in range(3):
        row = Distribution.from_logits(base.logits[i : i + 1])
        keep = rule.keep(row.log_probs(), row.log_probs())[0]
        seen: dict[int | None, float] = {}

        class Nth:
            def __init__(self, index: int) -> None:
                self.index, self.probability = index, 0.0

            def draw(self, weights):
                self.size, self.probability = len(weights), float(weights[self.index] / weights.sum())
                return torch.tensor(self.index)

        index, size = 0, 1
        while index < size:
            outcome = Nth(index)
            token = draw_kept(rule, row, outcome)
            seen[None if token is None else int(token)] = outcome.probability
            index, size = index + 1, outcome.size
        p = row.log_probs()[0].exp()
        expected = {t: float(p[t]) for t in range(30) if keep[t] > 0 and p[t] > 0} | {
            None: float(((1 - keep) * p).sum())
        }
        assert seen == pytest.approx(expected, abs=1e-12)


def test_a_drawn_token_follows_its_row() -> None:
    """Blocks first, then the token: 97 (one block) and 512 tokens; chi-square at 1e-6."""
    torch.manual_seed(0)
    from scipy.stats import chisquare

    for vocab in (97, 512):
        row = Distribution.from_logits(1.5 * torch.randn(vocab))
        counts = torch.zeros(vocab)
        for _ in range(4000):
            counts[draw_token(row, TorchRandomness())] += 1
        p = torch.softmax(row.logits.double(), dim=-1)
        large = p * 4000 >= 5
        observed = [*counts[large].tolist(), float(counts[~large].sum())]
        expected = [*(4000 * p[large]).tolist(), float(4000 * p[~large].sum())]
        assert chisquare(observed, expected).pvalue > 1e-6


def test_impossible_tokens_are_never_drawn() -> None:
    weights = torch.tensor([0.0, 0.0, 1.0, 0.0, 1e-30, 0.0])
    assert {int(TorchRandomness().draw(weights)) for _ in range(200)} == {2}


def test_coins_count_leading_successes_and_find_the_last_one() -> None:
    randomness = TorchRandomness()
    assert randomness.leading([1.0, 1.0, 0.0, 1.0]) == 2
    assert randomness.leading([1.0]) == 1
    assert randomness.last([1.0, 0.0, 1.0, 0.0]) == 3
    assert randomness.last([0.0, 0.0]) == 0


def _row(batch: Distribution, index: int) -> Distribution:
    return Distribution.from_logits(batch.logits[index])


def test_stacked_rows_are_the_batch() -> None:
    base, _ = rows(3, 1000)
    stacked = stack_rows([_row(base, i) for i in range(3)])
    for name, value in vars(stacked).items():
        torch.testing.assert_close(value, getattr(base, name))

"""Verification as pure tensors: sparse against dense, block against token, against definitions in closed form."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from kad.errors import LogitsError
from kad.method.composed import Composed
from kad.method.composition import Composition, compose, deferred_mass
from kad.method.distribution import Distribution, first_max
from kad.method.speculation.policies import GreedyPolicy, Open, Policy, SampledPolicy
from kad.method.speculation.randomness import TorchRandomness
from kad.method.verification import Target, running_product, verify_block, verify_greedy, verify_tokens
from kad.rules import ThresholdRule, parse_rule

THRESHOLD_RULES = [
    "dual:threshold=0.05", "dual:threshold=0.4", "primal", "primal:budget=0.5", "nudging:threshold=0.2",
    "confidence_bet", "confidence_bet:margin=0", "relative:margin=0.1", "aligned_only", "base_only",
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
    return Distribution.in_probabilities(base.to(dtype)), Distribution.in_probabilities(aligned.to(dtype))


def with_bonus(rows: torch.Tensor) -> torch.Tensor:
    """The rows of a window and one more, flat, at the position after it."""
    return torch.cat((rows, torch.zeros_like(rows[:1])))


def sampling(rule: str, randomness=None, verifier=verify_block) -> SampledPolicy:
    return SampledPolicy(
        composition=Composition(parse_rule(rule)),
        drafter="aligned",
        verifier=verifier,
        randomness=randomness or TorchRandomness(),
    )


def greedy(rule: str) -> GreedyPolicy:
    return GreedyPolicy(composition=Composition(parse_rule(rule)), drafter="aligned")


@pytest.mark.parametrize("vocab", [5, 1000, 49152])
@pytest.mark.parametrize("text", THRESHOLD_RULES)
def test_the_target_is_pi_against_q(text: str, vocab: int) -> None:
    """Ratio, excess and residual by their definitions."""
    rule = parse_rule(text)
    assert isinstance(rule, ThresholdRule)
    base, aligned = rows(6, vocab)
    drafts = torch.stack([TorchRandomness().draw(q) for q in aligned.probs()])
    drafts[0] = base.logits[0].argmax()
    composed = Composed(rule, base, aligned)
    pi, q = compose(rule, base.logits, aligned.logits).exp(), aligned.probs()
    target, at = Target(*composed.cascade(), q, drafts), drafts.unsqueeze(-1)
    torch.testing.assert_close(target.ratio, (pi.gather(-1, at) / q.gather(-1, at)).squeeze(-1), rtol=1e-9, atol=1e-12)
    for scale in (torch.ones(6, dtype=torch.float64), torch.linspace(0.05, 0.9, 6, dtype=torch.float64)):
        excess = (scale.unsqueeze(-1) * pi - q).clamp(min=0)
        torch.testing.assert_close(target.excess(scale[1:]), excess[1:].sum(-1), rtol=1e-7, atol=1e-12)
        for row in range(6):
            weights = target.follow(torch.tensor([row]), scale[row : row + 1])
            assert float(weights[vocab]) == 0.0
            if float(excess[row].sum()) > 1e-9:
                torch.testing.assert_close(weights[:vocab], excess[row], rtol=1e-6, atol=1e-12)


def test_after_a_whole_window_without_its_row_nothing_can_be_drawn_but_the_open_token() -> None:
    base, aligned = rows(3, 30)
    target = Target(
        *Composed(parse_rule("confidence_bet"), base, aligned).cascade(), aligned.probs(), torch.zeros(3).long()
    )
    weights = target.follow(torch.tensor([3]), torch.ones(1, dtype=torch.float64))
    assert weights.tolist() == [0.0] * 30 + [1.0]


def test_where_pi_is_q_up_to_the_last_bit_a_rejection_draws_from_pi() -> None:
    q = torch.tensor([[0.25, 0.75]])
    target = Target(torch.zeros(1, 2), torch.tensor([1.0 - 6e-8]), q, torch.tensor([1]))
    weights = target.follow(torch.tensor([0]), torch.ones(1))
    torch.testing.assert_close(weights, torch.tensor([0.25, 0.75, 0.0]))


def test_the_running_product_is_its_recursion() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        ratio = (2.0 * torch.randn(12, generator=generator, dtype=torch.float64)).exp()
        ratio[torch.rand(12, generator=generator) < 0.05] = 0.0
        joint, expected = 1.0, []
        for value in ratio.tolist():
            joint = min(1.0, joint * value)
            expected.append(joint)
        torch.testing.assert_close(running_product(ratio).tolist(), expected, rtol=1e-12, atol=0)


def test_rejecting_draws_a_kept_token_and_stops_at_the_first_failure() -> None:
    logits = torch.tensor([[5.0, 0.0, 0.0], [0.0, 0.0, 5.0]], dtype=torch.float64)

    class Reject(TorchRandomness):
        def leading(self, probabilities):
            return torch.tensor(0)

        last = leading
        draw = staticmethod(lambda weights: weights.argmax())

    for verifier in (verify_tokens, verify_block):
        policy = sampling("dual:threshold=0.4", Reject(), verifier)
        drafts = [policy.draft(row, 0) for row in logits.flip(-1)]
        assert [int(draft.token) for draft in drafts] == [2, 0]
        verdict = policy.judge(drafts, {"base": with_bonus(logits)}, 0)
        assert (verdict.accepted, verdict.drafts, verdict.follows, int(verdict.token)) == (0, [2, 0], 0, 0)
        assert len(verdict.chance) == 1


def _expected_accepted(verifier, pi: torch.Tensor, q: torch.Tensor, window: int) -> float:
    """The expected number of accepted drafts of an i.i.d. window, over every window and every coin."""
    vocab, total = len(pi), 0.0

    class Expectation:
        value = 0.0

        def leading(self, chances):
            probabilities = chances.tolist()
            self.value = sum(math.prod(probabilities[: i + 1]) for i in range(len(probabilities)))
            return torch.tensor(len(probabilities))

        def last(self, chances):
            probabilities = chances.tolist()
            # The i-th prefix is within the longest one that stands unless every coin from i on fails.
            self.value = sum(1 - math.prod(1 - p for p in probabilities[i:]) for i in range(len(probabilities)))
            return torch.tensor(len(probabilities))

    for drafts in itertools.product(range(vocab), repeat=window):
        expectation = Expectation()
        tokens = torch.tensor(drafts)
        rows = pi.expand(window, -1), torch.zeros(window, dtype=pi.dtype), q.expand(window, -1)
        verifier(Target(*rows, tokens), expectation)
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
    assert verify_greedy(torch.tensor([4, 2, 1]), torch.tensor([4, 7, 1])).tolist() == [1]
    assert verify_greedy(torch.tensor([4, 7, 1]), torch.tensor([4, 7, 1])).tolist() == [3]
    logits = torch.eye(8)[[4, 7, 1]] * 9
    policy = greedy("base_only")
    drafts = [policy.draft(row, 0) for row in logits]
    verdict = policy.judge(drafts, {"base": with_bonus(torch.eye(8)[[4, 2, 1]] * 9)}, 0)
    assert (verdict.accepted, verdict.follows, verdict.chance) == (1, 2, [1.0, 0.0])
    whole = policy.judge(drafts, {"base": with_bonus(logits)}, 0)
    assert (whole.accepted, whole.follows, whole.chance) == (3, None, [1.0, 1.0, 1.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("vocab", [5, 1000, 49152])
@pytest.mark.parametrize("text", THRESHOLD_RULES)
def test_greedy_chooses_the_argmax_of_pi(text: str, vocab: int, dtype: torch.dtype) -> None:
    base, aligned = rows(12, vocab, seed=3, dtype=dtype)
    expected = compose(text, base.logits, aligned.logits).argmax(dim=-1)
    policy = greedy(text)
    for row in range(12):
        chosen = policy.settle(Open({"base": base.logits[row : row + 1]}), aligned.logits[row], 0)
        assert chosen.read() == int(expected[row])
    drafts = [policy.draft(row, 0) for row in aligned.logits]
    verdict = policy.judge(drafts, {"base": with_bonus(base.logits)}, 0)
    agree = [int(draft.token) == int(choice) for draft, choice in zip(drafts, expected, strict=True)]
    assert verdict.accepted == (agree.index(False) if False in agree else 12)
    if verdict.follows is not None:
        assert verdict.follows == int(expected[verdict.accepted])
    alpha = deferred_mass(text, base.logits, aligned.logits)[: verdict.accepted + 1]
    assert list(verdict.alpha) == pytest.approx(alpha.tolist(), rel=1e-4, abs=1e-6)


def test_ties_go_to_the_smallest_token_as_argmax_does() -> None:
    base = torch.tensor([[0.0, 3.0, 3.0, 0.0], [3.0, 0.0, 0.0, 3.0]])
    for row, expected in zip(base, [1, 0], strict=True):
        assert greedy("dual:threshold=0.2").settle(Open({"base": row[None]}), torch.zeros(4), 0).read() == expected
    large = torch.zeros(2, 49152)
    large[0, [900, 30_000]] = 1.0
    assert first_max(large).tolist() == [900, 0]


@pytest.mark.parametrize("vocab", [30, 49152])
@pytest.mark.parametrize("text", ["dual:threshold=0.2", "primal:budget=0.5", "nudging:threshold=0.9", "base_only"])
def test_the_bonus_draw_needs_no_aligned_row(text: str, vocab: int) -> None:
    """P(u kept) = sum k p, and a kept u is distributed as k p: all outcomes with their weights."""
    rule = parse_rule(text)
    assert isinstance(rule, ThresholdRule)
    assert not rule.reads_aligned
    base, _ = rows(3, vocab)
    for i in range(3):
        p = base.probs()[i]
        keep = rule.keep(p.log(), p.log())
        seen: dict[int | None, float] = {}

        class Nth(TorchRandomness):
            def __init__(self, index: int) -> None:
                self.index, self.probability = index, 0.0

            def draw(self, weights):
                self.weights, self.probability = weights, float(weights[self.index] / weights.sum())
                return torch.tensor(self.index)

        first = Nth(0)
        sampling(text, first).judge([], {"base": base.logits[i : i + 1]}, 0)
        for index in first.weights.nonzero()[:, 0].tolist()[:200]:
            outcome = Nth(index)
            verdict = sampling(text, outcome).judge([], {"base": base.logits[i : i + 1]}, 0)
            seen[verdict.follows] = outcome.probability
        kept = (keep * p).nonzero()[:, 0].tolist()
        deferred = float(((1 - keep) * p).sum())
        expected = {t: float(p[t]) for t in kept} | ({None: deferred} if deferred > 0 else {})
        if len(expected) <= 200:
            assert seen == pytest.approx(expected, abs=1e-12)
        else:
            assert all(probability == pytest.approx(expected[t], abs=1e-12) for t, probability in seen.items())


def test_a_drawn_token_follows_its_row() -> None:
    """97 and 512 tokens, and 8192 that are drawn by blocks; chi-square at 1e-6."""
    torch.manual_seed(0)
    from scipy.stats import chisquare

    for vocab, spread in ((97, 1.5), (512, 1.5), (8192, 4.0)):
        policy, logits = sampling("dual"), spread * torch.randn(vocab)
        counts = torch.zeros(vocab)
        for _ in range(4000):
            counts[policy.draft(logits, 0).token] += 1
        p = torch.softmax(logits.double(), dim=-1)
        large = p * 4000 >= 5
        observed = [*counts[large].tolist(), float(counts[~large].sum())]
        expected = [*(4000 * p[large]).tolist(), float(4000 * p[~large].sum())]
        assert chisquare(observed, expected).pvalue > 1e-6


def test_impossible_tokens_are_never_drawn() -> None:
    weights = torch.tensor([0.0, 0.0, 1.0, 0.0, 1e-30, 0.0])
    assert {int(TorchRandomness().draw(weights)) for _ in range(200)} == {2}
    for token in (0, 300, 8191):
        assert int(TorchRandomness().draw(torch.zeros(8192).index_fill(0, torch.tensor(token), 1.0))) == token


def test_the_largest_random_number_still_draws_a_possible_token() -> None:
    class Largest(TorchRandomness):
        def _uniform(self, count, device):
            return torch.full((count,), 1.0 - 2.0**-53, dtype=torch.float64)

    for mass in (0.1, 1.0, 3.0, 7.3e-12):
        assert int(Largest().draw(torch.tensor([0.0, mass, 0.0, 0.0]))) == 1


def test_coins_count_leading_successes_and_find_the_last_one() -> None:
    randomness = TorchRandomness()
    assert int(randomness.leading(torch.tensor([1.0, 1.0, 0.0, 1.0]))) == 2
    assert int(randomness.leading(torch.tensor([1.0]))) == 1
    assert int(randomness.last(torch.tensor([1.0, 0.0, 1.0, 0.0]))) == 3
    assert int(randomness.last(torch.tensor([0.0, 0.0]))) == 0


def test_a_seed_repeats_its_decisions() -> None:
    weights = torch.rand(1000)
    draws = [
        [int(r.draw(weights)) for _ in range(20)] for r in (TorchRandomness(5), TorchRandomness(5), TorchRandomness(6))
    ]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("policy", [sampling("dual"), greedy("dual"), sampling("mixture"), greedy("confidence_bet")])
@pytest.mark.parametrize("who", ["base", "aligned"])
def test_a_bad_row_in_a_window_is_the_error_that_names_it(policy: Policy, who: str) -> None:
    good, bad = torch.randn(2, 9), torch.randn(2, 9)
    bad[1, 4] = float("nan")
    base, aligned = (bad, good) if who == "base" else (good, bad)
    drafts = [policy.draft(row, 0) for row in aligned]
    with pytest.raises(LogitsError, match=rf"the {who} model's logits of shape \(\d, 9\): row 1 has NaN at token 4"):
        policy.judge(drafts, {"base": with_bonus(base)}, 0)


@pytest.mark.parametrize("policy", [sampling("dual"), greedy("dual"), sampling("confidence_bet")])
def test_a_bad_row_after_the_window_matters_where_it_is_used(policy: Policy) -> None:
    torch.manual_seed(0)
    logits, bad = torch.randn(2, 9), torch.full((1, 9), float("nan"))
    settled = policy.settle(Open({"base": bad}), logits[0], 0)
    drafts = [policy.draft(row, 0) for row in logits]
    surely = torch.full((2, 9), -9.0).scatter_(1, torch.stack([d.token for d in drafts]).unsqueeze(-1), 9.0)
    if policy.p_first:
        with pytest.raises(LogitsError, match=r"base model's logits of shape \(3, 9\): row 2 has NaN at token 0"):
            policy.judge(drafts, {"base": torch.cat((surely, bad))}, 0)
        assert policy.judge(drafts, {"base": torch.cat((surely.roll(1, dims=-1), bad))}, 0).accepted < 2
    else:
        with pytest.raises(LogitsError, match=r"the base model.s logits of shape \(1, 9\): row 0 has NaN"):
            policy.judge(drafts, {"base": with_bonus(surely)}, 0, settled)
        with pytest.raises(LogitsError, match=r"the base model.s logits of shape \(1, 9\): row 0 has NaN"):
            settled.read()
    draft = policy.draft(bad[0], 0)
    with pytest.raises(LogitsError, match="the aligned model's logits"):
        policy.judge([draft], {"base": torch.zeros(2, 9)}, 0)

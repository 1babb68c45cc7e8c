"""The loop's output distribution, exactly: every random outcome of the real loop is enumerated on table models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from kad.errors import VocabularyError
from kad.method import distribution
from kad.method.composed import Composed
from kad.method.distribution import Rows, move_to_rest
from kad.method.verification import Target, verify_block, verify_tokens
from kad.rules import parse_rule, registry
from own_rules import Wanted
from speculative_tables import TableScorer, exact_distribution, total_variation, true_distribution

VERIFIERS = {"token": verify_tokens, "block": verify_block}
RULES = [
    "dual:threshold=0.4", "dual:threshold=0.15", "primal:budget=0.6", "nudging:threshold=0.5",
    "confidence_bet:margin=0.0", "confidence_bet:margin=0.2", "relative:margin=0.3", "aligned_only", "base_only",
    "mixture:weight=0.4", Wanted(-0.3), "lp:budget=0.5", "veto:threshold=0.2,plausibility=0.3", "blend:threshold=0.6",
    "product:base=0.8,aligned=1.2", "product:plausibility=0.4", "implicit_reward", "contrastive",
    "experts:base=-0.5,aligned=1.5",
]  # fmt: skip


def check(rule: str, **settings) -> None:
    parsed = parse_rule(rule)
    world = {
        key: value
        for key, value in settings.items()
        if key not in ("window", "verifier", "drafter", "scorer", "greedy")
    }
    found, truth = exact_distribution(parsed, **settings), true_distribution(parsed, **world)
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-9)
    assert total_variation(found, truth) < 1e-9


def test_every_rule_is_enumerated() -> None:
    assert {parse_rule(rule).name for rule in RULES} == {*registry(), Wanted.name}


@pytest.mark.supports("Transformers", "speculative sampling", rules=[rule for rule in RULES if isinstance(rule, str)])
@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_rule(rule: str, verifier: str) -> None:
    check(rule, vocab=3, new_tokens=3, window=2, verifier=VERIFIERS[verifier])


@pytest.fixture
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Small rows are searched as large ones: the loop looks at kept tokens and drafts alone. How many these were."""
    monkeypatch.setattr(distribution, "_LARGE", 1)
    monkeypatch.setattr(distribution, "_FEW", 1.0)
    monkeypatch.setattr(distribution, "_block_size", lambda vocab: 1)
    seen: list[int] = []

    def noted(self: Composed, also: torch.Tensor, at_few=Composed.cascade_at_few) -> Any:
        found = at_few(self, also)
        seen.append(-1 if found is None else len(found[0]))
        return found

    monkeypatch.setattr(Composed, "cascade_at_few", noted)
    return seen


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("rule", RULES[:9], ids=str)
def test_few_tokens_are_enough(rule: str, verifier: str, few_tokens: list[int]) -> None:
    check(rule, vocab=4, new_tokens=3, window=2, verifier=VERIFIERS[verifier])
    check(rule, vocab=4, new_tokens=2, window=0, verifier=VERIFIERS[verifier])
    check(rule, vocab=4, new_tokens=2, window=2, verifier=VERIFIERS[verifier], deferral_temperature=0.7)
    assert 0 <= min(few_tokens) < 4 or rule == "base_only"


@pytest.mark.parametrize("rule", RULES[:9], ids=str)
def test_few_tokens_are_enough_for_greedy_text(rule: str, few_tokens: list[int]) -> None:
    test_greedy_is_the_argmax_of_pi_at_every_step(rule)
    assert few_tokens


@pytest.mark.parametrize("window", [0, 2])
def test_few_tokens_and_a_rest(window: int, few_tokens: list[int]) -> None:
    test_the_rest_is_deferred("dual:threshold=0.4", window)
    assert 0 <= min(few_tokens) < 3


def test_a_kept_token_that_is_not_looked_at_is_seen(few_tokens: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def without_kept(self: Composed, also: torch.Tensor, at_few=Composed.cascade_at_few) -> Any:
        tokens, kept, alpha = at_few(self, also)
        drafts = torch.isin(tokens, also)
        return tokens[drafts], kept[:, drafts], alpha

    assert discrepancy(verifier=verify_block) < 1e-9
    monkeypatch.setattr(Composed, "cascade_at_few", without_kept)
    with pytest.raises(AssertionError, match="a draw from nothing"):  # the residual lives on kept tokens
        discrepancy(verifier=verify_block)


@pytest.mark.parametrize("window", [0, 1, 4, (0, 2), (2, 0, 0, 0)], ids=str)
@pytest.mark.parametrize("rule", ["dual:threshold=0.4", "confidence_bet:margin=0.0", "mixture:weight=0.4"])
def test_windows(rule: str, window: int) -> None:
    check(rule, vocab=2, new_tokens=5, window=window, verifier=verify_block)


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_longer_sequences_token_by_token_and_as_blocks(verifier: str) -> None:
    check("dual:threshold=0.4", vocab=2, new_tokens=5, window=3, verifier=VERIFIERS[verifier])


@pytest.mark.parametrize("rule", ["dual:threshold=0.3", "implicit_reward"])
def test_eight_tokens(rule: str) -> None:
    check(rule, vocab=8, new_tokens=2, window=1, verifier=verify_block)


@pytest.mark.parametrize("rule", ["dual:threshold=0.3", "primal:budget=0.7", "mixture:weight=0.4"])
def test_end_of_sequence_inside_a_window(rule: str) -> None:
    check(rule, vocab=3, new_tokens=4, window=2, verifier=verify_block, eos=2)


WARPERS = {
    "temperature": [TemperatureLogitsWarper(0.7)],
    "top_p": [TemperatureLogitsWarper(1.3), TopPLogitsWarper(0.8)],
    "repetition": [RepetitionPenaltyLogitsProcessor(1.5)],
}


@pytest.mark.parametrize("warpers", WARPERS)
@pytest.mark.parametrize("rule", ["dual:threshold=0.4", "implicit_reward"])
def test_warpers_act_on_pi(rule: str, warpers: str) -> None:
    processors = LogitsProcessorList(WARPERS[warpers])
    check(rule, vocab=3, new_tokens=3, window=2, verifier=verify_block, processors=processors)


@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_papers_order_divides_every_models_logits_before_composing(rule: str, window: int) -> None:
    check(rule, vocab=3, new_tokens=2, window=window, verifier=verify_block, deferral_temperature=0.7)


class NeverKeeps(TableScorer):
    """A table model; the base model never keeps its second token."""

    NEVER = torch.tensor([False, True, False])

    def advance(self, ids: torch.Tensor, keep: int) -> Rows:
        rows = super().advance(ids, keep)
        return move_to_rest(rows, self.NEVER, 1.3) if self.role == "base" else rows


@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("rule", ["dual:threshold=0.4", "confidence_bet:margin=0.0", "mixture:weight=0.4"])
def test_the_rest_is_deferred(rule: str, window: int) -> None:
    parsed, world = parse_rule(rule), {"vocab": 3, "new_tokens": 2, "deferral_temperature": 1.3}
    found = exact_distribution(parsed, window=window, verifier=verify_block, scorer=NeverKeeps, **world)
    assert total_variation(found, true_distribution(parsed, never=NeverKeeps.NEVER, **world)) < 1e-9


@pytest.mark.parametrize("rule", ["dual:threshold=0.4", "implicit_reward"])
def test_drafts_from_the_reference(rule: str) -> None:
    check(rule, vocab=3, new_tokens=3, window=2, verifier=verify_block, drafter="reference")


@pytest.mark.parametrize("rule", RULES)
def test_greedy_is_the_argmax_of_pi_at_every_step(rule: str) -> None:
    parsed = parse_rule(rule)
    steps = []
    for length in range(1, 6):
        pi = true_distribution(parsed, vocab=3, new_tokens=1, prefix=tuple(steps))
        steps.append(max(pi, key=pi.__getitem__)[0])
        for window in (0, 1, 2, 5, (0, 2), (2, 0, 0)):
            found = exact_distribution(
                parsed, vocab=3, new_tokens=length, window=window, verifier=verify_block, greedy=True
            )
            assert found == {tuple(steps): 1.0}


# ---------------------------------------------------------------- the proof must fail on a broken loop


def without_its_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Composed, "_rest", lambda self: 0.0)


def kept_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NeverKeeps, "advance", TableScorer.advance)


@pytest.mark.parametrize("broken", [without_its_rest, kept_all_the_same])
@pytest.mark.parametrize("window", [0, 2])
def test_a_rest_that_is_not_deferred_is_seen(broken, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rule, world = parse_rule("dual:threshold=0.4"), {"vocab": 3, "new_tokens": 2, "deferral_temperature": 1.3}
    truth = true_distribution(rule, never=NeverKeeps.NEVER, **world)
    broken(monkeypatch)
    found = exact_distribution(rule, window=window, verifier=verify_block, scorer=NeverKeeps, **world)
    assert total_variation(found, truth) > 1e-3


def test_rows_with_one_more_token_are_refused() -> None:
    class Wider(TableScorer):
        def __init__(self, role: str, vocab: int) -> None:
            super().__init__(role, vocab + (role == "base"))

    for window, rule in ((0, "confidence_bet"), (2, "dual"), (2, "mixture")):
        with pytest.raises(VocabularyError, match=r"base_logits \(\d, 4\), aligned_logits \(\d, 3\)"):
            exact_distribution(
                parse_rule(rule), vocab=3, new_tokens=4, window=window, verifier=verify_block, scorer=Wider
            )


def discrepancy(**broken) -> float:
    rule = parse_rule("dual:threshold=0.3")
    settings = {"vocab": 3, "new_tokens": 3, "window": 2, "verifier": verify_tokens} | broken
    return total_variation(exact_distribution(rule, **settings), true_distribution(rule, vocab=3, new_tokens=3))


def test_dropping_the_residual_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    follow = Target.follow

    def pi_itself(self: Target, accepted: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        weights = follow(self, accepted, scale)
        stands = int(accepted) == self.drafts.shape[0]
        return weights if stands else torch.cat((self.kept[int(accepted)], weights[-1:]))

    monkeypatch.setattr(Target, "follow", pi_itself)
    assert discrepancy() > 1e-3


def test_accepting_one_too_many_is_seen() -> None:
    def generous(target: Target, randomness):
        accepted, scale = verify_tokens(target, randomness)
        return (accepted + 1).clamp(max=len(target.ratio)), scale

    assert discrepancy(verifier=generous) > 1e-3


def test_forgetting_to_crop_is_seen() -> None:
    class Forgetful(TableScorer):
        def rollback(self, length: int) -> None:
            self.processed = min(self.processed, length)

    assert discrepancy(scorer=Forgetful) > 1e-3

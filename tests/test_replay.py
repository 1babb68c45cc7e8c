"""Models that cannot drop tokens (recurrent states) draft all the same: snapshots, exact, and counted in passes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from kad.errors import UsageError
from kad.method import replay
from kad.method.composition import Composition
from kad.method.replay import Replay
from kad.method.speculation.loop import SpeculativeLoop
from kad.method.speculation.policies import choose_policy
from kad.method.speculation.randomness import TorchRandomness
from kad.method.speculation.statistics import SpeculationStatistics
from kad.method.speculation.windows import FixedWindow
from kad.method.verification import verify_block
from kad.rules import parse_rule
from speculative_tables import OnlyForward, TableScorer, exact_distribution, total_variation, true_distribution

# ---------------------------------------------------------------- any model, as a table


def replayed(role: str, vocab: int) -> Replay:
    return Replay(OnlyForward(role, vocab))


def discrepancy(rule: str, scorer: Callable[[str, int], Any] = replayed, **settings: Any) -> float:
    parsed, world = parse_rule(rule), {"vocab": 2, "new_tokens": 4}
    settings = {"window": 2, "verifier": verify_block} | settings
    return total_variation(
        exact_distribution(parsed, scorer=scorer, **world, **settings), true_distribution(parsed, **world)
    )


@pytest.mark.parametrize("together", [0, replay.TOGETHER])
@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize("rule", ["dual:threshold=0.4", "mixture:weight=0.4"])
def test_the_loop_is_exact_over_models_that_only_go_forward(
    rule: str, window: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every random outcome is enumerated; what is read again is read in the same pass, or in one of its own."""
    monkeypatch.setattr(replay, "TOGETHER", together)
    assert discrepancy(rule, window=window) < 1e-9


def test_drafts_from_the_reference_are_exact_too() -> None:
    assert discrepancy("implicit_reward", drafter="reference") < 1e-9


class Shared(OnlyForward):
    """Its snapshots are no copies: what it reads later changes them."""

    def save(self) -> Any:
        return self.processed, self.seen

    def restore(self, saved: Any) -> None:
        self.processed, self.seen = saved


class Newest(Replay):
    """Goes back to the newest snapshot, and says that it went back as far as asked."""

    processed = 0

    def advance(self, ids: torch.Tensor, keep: int) -> Any:
        self.processed += len(ids)
        return super().advance(ids, keep)

    def rollback(self, length: int) -> None:
        if length < self.processed:
            self._model.restore(self._saved[max(self._saved)])
            self.processed = length


@pytest.mark.parametrize("broken", [lambda *which: Replay(Shared(*which)), lambda *which: Newest(OnlyForward(*which))])
def test_a_state_that_keeps_rejected_drafts_is_seen(broken: Callable[[str, int], Any]) -> None:
    assert discrepancy("dual:threshold=0.3", broken, window=4) > 1e-3


def test_rows_after_any_walk_are_those_of_a_model_that_drops_tokens() -> None:
    choose, model, other = random.Random(0), OnlyForward("base", 7), TableScorer("base", 7)
    scorer, text = Replay(model), []
    for _ in range(400):
        new = [choose.randrange(7) for _ in range(choose.choice([1, 1, 1, 2, 5, 30]))]
        text += new
        rows = scorer.advance(torch.tensor(text[scorer.processed :]), len(new))
        assert torch.equal(rows, other.advance(torch.tensor(new), len(new)))
        del text[max(0, len(text) - choose.choice([0, 0, 1, 2, len(new), 80])) :]
        for each in (scorer, other):
            each.rollback(len(text))
        assert scorer.processed <= other.processed == len(text)


@pytest.mark.parametrize("step", [1, 5])
def test_few_snapshots_stay_and_going_back_costs_no_more_than_going_back_twice_as_far_again(step: int) -> None:
    scorer = Replay(OnlyForward("base", 2))
    for length in range(0, 3000, step):
        assert len(scorer._saved) < 20
        scorer.advance(torch.zeros(step, dtype=torch.long), 1)
        if length % 250 == 0:
            for back in range(step, length, 7):
                kept = max(at for at in scorer._saved if at <= length + step - back)
                assert length + step - kept <= 3 * back
    scorer.rollback(0)
    assert scorer.processed == 0


def run(scorers: dict[str, Any], prompt: int, new: int, rule: str) -> tuple[list[int], SpeculationStatistics]:
    """A sampled text in windows of four drafts."""
    ids = torch.zeros(prompt + new, dtype=torch.long)
    policy = choose_policy(
        composition=Composition(rule), drafter="aligned", greedy=False, verifier=verify_block,
        randomness=TorchRandomness(0), warp=None, records=None,
    )  # fmt: skip
    loop = SpeculativeLoop(
        ids=ids, length=prompt, drafter="aligned", scorers=scorers, policy=policy, window=FixedWindow(4),
        stop=lambda ids, new: (len(new), False),
    )  # fmt: skip
    return [item.token for items in loop.run() for item in items], loop.statistics


class Counted(TableScorer):
    """A table model that drops tokens, and counts its passes."""

    def __init__(self, role: str, vocab: int) -> None:
        super().__init__(role, vocab)
        self.passes: list[int] = []

    def advance(self, ids: torch.Tensor, keep: int) -> torch.Tensor:
        self.passes.append(len(ids))
        return super().advance(ids, keep)


@pytest.mark.parametrize("rule", ["dual:threshold=0.4", "mixture:weight=0.4"])
def test_no_further_forward_pass_until_many_tokens_are_read_again(rule: str) -> None:
    """The same text in the same passes; only a prompt, or 16 tokens that no window confirmed as a whole, take one."""
    for new in (14, 200):
        theirs, ours = ({role: kind(role, 5) for role in ("base", "aligned")} for kind in (Counted, OnlyForward))
        text, statistics = run(theirs, 40, new, rule)
        found, _ = run({role: Replay(model) for role, model in ours.items()}, 40, new, rule)
        assert found == text
        assert statistics.accepted < statistics.drafted
        for role, model in ours.items():
            further = len(model.passes) - len(theirs[role].passes)
            assert 0 < further <= 1 + (0 if new < replay.TOGETHER else new // replay.TOGETHER)
            assert max(model.passes[2:]) <= replay.TOGETHER + 5
        assert len(ours["aligned"].passes) == len(theirs["aligned"].passes) + 1  # that of the prompt


def test_a_cache_that_holds_too_much_already_is_refused() -> None:
    model = OnlyForward("base", 3)
    model.advance(torch.tensor([0, 1, 2]), 1)
    scorer = Replay(model)
    scorer.rollback(3)
    scorer.advance(torch.tensor([1]), 1)
    scorer.rollback(3)
    assert scorer.processed == 3
    with pytest.raises(UsageError, match=r"holds 3 tokens, .* cannot go back to 2\. Give a cache that has read less"):
        scorer.rollback(2)

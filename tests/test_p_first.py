"""Where p alone decides a token, q* does not run: which tokens these are, and that text and rows stay the same."""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import asdict

import pytest
import torch

import kad
import oracle
from kad.engines.pair import pair_of
from kad.method import verification
from kad.method.composition import Composition, compose
from kad.method.speculation import loop as loop_module
from kad.method.speculation.loop import Emitted, SpeculativeLoop
from kad.method.speculation.policies import GreedyPolicy, choose_policy
from kad.method.speculation.randomness import TorchRandomness
from kad.method.speculation.windows import FixedWindow, WindowSize
from kad.method.verification import Target, verify_block
from kad.rules import ThresholdRule, parse_rule, registry
from kad.text.contexts import Asking
from kad.text.streaming import Stream
from speculative_tables import PROMPT, TableScorer, Turns, table_row

pytestmark = pytest.mark.core

# Those whose kept tokens are known before q* is, and some that are not.
P_ALONE = [
    "dual:threshold=0.4", "dual:threshold=0.15", "primal:budget=0.6", "nudging:threshold=0.5", "relative:margin=0.3",
    "base_only", "aligned_only",
]  # fmt: skip
WITH_Q = ["confidence_bet:margin=0.2", "mixture:weight=0.6", "veto:threshold=0.2,plausibility=0.3"]
VOCAB = 5


class Counted(TableScorer):
    """A table model that counts its passes."""

    def __init__(self, role: str, vocab: int) -> None:
        super().__init__(role, vocab)
        self.passes: list[int] = []  # how many tokens each of them read

    def advance(self, ids: torch.Tensor, keep: int) -> torch.Tensor:
        self.passes.append(len(ids))
        return super().advance(ids, keep)


def run(
    rule: str, *, greedy: bool, window: WindowSize | None = None, keep_rows: bool = False, tokens: int = 60
) -> tuple[list[list[Emitted]], Counted]:
    """What the loop emits, each time that it does, and q*."""
    aligned = Counted("aligned", VOCAB)
    loop = SpeculativeLoop(
        ids=torch.tensor([*PROMPT, *[0] * tokens]),
        length=len(PROMPT),
        drafter="aligned",
        scorers={"base": TableScorer("base", VOCAB), "aligned": aligned},
        policy=choose_policy(
            composition=Composition(parse_rule(rule)), drafter="aligned", greedy=greedy, verifier=verify_block,
            randomness=TorchRandomness(3),
        ),
        window=window or FixedWindow(0),
        stop=lambda ids, new: (len(new), False),
        keep_rows=keep_rows,
    )  # fmt: skip
    return list(loop.run()), aligned


def text_of(emitted: list[list[Emitted]]) -> list[int]:
    return [item.token for items in emitted for item in items]


def keep_of(rule: str, p: list[float]) -> list[float]:
    """The keep probabilities of a rule that does not read q*."""
    parsed = parse_rule(rule)
    return oracle.KEEP[parsed.name](p, p, **asdict(parsed))


def lead(rule: str, p: list[float]) -> float:
    """By how much more than the deferred mass the largest kept p is above the next one."""
    keep = keep_of(rule, p)
    kept = sorted((k * x for k, x in zip(keep, p, strict=True)), reverse=True)
    return kept[0] - kept[1] - math.fsum((1.0 - k) * x for k, x in zip(keep, p, strict=True))


def test_the_rules_are_those_that_do_not_read_q() -> None:
    alone = {
        name for name, rule in registry().items() if issubclass(rule, ThresholdRule) and rule.reads_aligned is False
    }
    assert {parse_rule(rule).name for rule in P_ALONE} == alone


@pytest.mark.parametrize("rule", P_ALONE)
def test_greedy_q_runs_only_where_p_leaves_the_token_open(rule: str) -> None:
    emitted, aligned = run(rule, greedy=True)
    prefix, opened = [*PROMPT], 0
    for token in text_of(emitted):
        base, other = (table_row(role, tuple(prefix), VOCAB) for role in ("base", "aligned"))
        assert token == int(compose(rule, base, other).argmax())
        opened += lead(rule, base.softmax(-1).tolist()) <= 1e-4
        prefix.append(token)
    assert len(aligned.passes) == opened
    assert opened < 50 or rule == "aligned_only"


@pytest.mark.parametrize("rule", WITH_Q)
def test_where_the_rule_reads_q_every_token_does(rule: str) -> None:
    emitted, aligned = run(rule, greedy=True)
    assert len(aligned.passes) == len(text_of(emitted)) == 60


def test_sampled_q_runs_only_for_deferred_tokens() -> None:
    for rule in P_ALONE:
        emitted, aligned = run(rule, greedy=False)
        deferred = 0
        prefix = [*PROMPT]
        for token in text_of(emitted):
            p = table_row("base", tuple(prefix), VOCAB).softmax(-1).tolist()
            deferred += keep_of(rule, p)[token] == 0.0  # q* may have drawn a kept token, too
            prefix.append(token)
        assert deferred <= len(aligned.passes) <= {"base_only": 0, "aligned_only": 60}.get(rule, 50)


def rows_of_eighths(vocab: int) -> torch.Tensor:
    """All rows of p in eighths, ties among them."""
    counts = [row for row in itertools.product(range(9), repeat=vocab) if sum(row) == 8]
    return torch.tensor(counts, dtype=torch.float64) / 8


def choice_of_p(rule: str, p: torch.Tensor) -> int | None:
    """What the greedy policy takes from p alone."""
    policy = GreedyPolicy(composition=Composition(parse_rule(rule)), drafter="aligned")
    return policy.judge([], {"base": p.log().unsqueeze(0)}, 0).follows


def wrong_choices(rule: str, dtype: torch.dtype) -> tuple[int, int]:
    """How many choices of p alone some q* turns; and how many are left open although none does, in eighths."""
    everywhere = rows_of_eighths(4).to(dtype)
    wrong = needless = 0
    for p in rows_of_eighths(4).to(dtype):
        first = compose(rule, p.log().expand_as(everywhere), everywhere.log()).argmax(dim=-1)
        chosen = choice_of_p(rule, p)
        if chosen is not None:
            wrong += bool((first != chosen).any())
        elif bool((first == first[0]).all()):
            needless += lead(rule, p.tolist()) > 1e-4
    return wrong, needless


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", P_ALONE)
def test_no_q_turns_a_choice_of_p_and_the_bound_is_sharp(rule: str, dtype: torch.dtype) -> None:
    """All q* in eighths against all p in eighths, which tie with each other and with the bound."""
    assert wrong_choices(rule, dtype) == (0, 0)


def test_a_broken_bound_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_SURE", -0.05)  # where the lead is alpha, q* may turn it
    assert wrong_choices("dual:threshold=0.15", torch.float64)[0] > 0

    def largest_kept(self: Target) -> torch.Tensor:
        return self.kept[-1:].argmax(dim=-1)

    monkeypatch.setattr(Target, "first_of_p", largest_kept)
    assert wrong_choices("dual:threshold=0.4", torch.float64)[0] > 0
    emitted, _ = run("dual:threshold=0.15", greedy=True)
    prefix, seen = [*PROMPT], 0
    for token in text_of(emitted):
        rows = (table_row(role, tuple(prefix), VOCAB) for role in ("base", "aligned"))
        seen += token != int(compose("dual:threshold=0.15", *rows).argmax())
        prefix.append(token)
    assert seen > 0


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("sizes", [(0,), (3,), (0, 0, 0, 0, 3), (2, 0)], ids=str)
@pytest.mark.parametrize("rule", ["dual:threshold=0.15", "base_only", "confidence_bet:margin=0.2"])
def test_every_token_comes_with_the_rows_of_its_place(rule: str, sizes: tuple[int, ...], greedy: bool) -> None:
    emitted, _ = run(rule, greedy=greedy, window=Turns(*sizes), keep_rows=True)
    prefix = [*PROMPT]
    for item in (item for items in emitted for item in items):
        assert item.origin.rows is not None
        for role in ("base", "aligned"):
            assert torch.equal(item.origin.rows[role], table_row(role, tuple(prefix), VOCAB))
        prefix.append(item.token)
    assert len(prefix) == len(PROMPT) + 60
    assert text_of(emitted) == text_of(run(rule, greedy=greedy, window=Turns(*sizes))[0])


def test_rows_are_waited_for_a_few_tokens_at_most() -> None:
    for rule, most in (("base_only", 8), ("dual:threshold=0.15", 9)):
        emitted, aligned = run(rule, greedy=True, keep_rows=True)
        lengths = [len(items) for items in emitted]
        assert lengths[0] == 1
        assert 3 < max(lengths) <= most
        assert len(aligned.passes) < 40


def test_the_last_tokens_are_not_left_behind() -> None:
    for tokens in range(1, 20):
        assert len(text_of(run("base_only", greedy=True, keep_rows=True, tokens=tokens)[0])) == tokens


@pytest.mark.parametrize("base_prompt", [None, "qa"])
def test_the_embedded_pair_writes_the_same_text_with_a_fifth_of_the_passes_of_q(base_prompt: str | None) -> None:
    pair = pair_of(kad.load("tiny", dtype="float32"))
    greedy, passes, tokens = kad.Sampling(temperature=0, max_new_tokens=60), 0, 0
    for question in ("Mia has 24 apples. She buys 13 more. How many apples does she have now?", "Write a poem.", "Hi"):
        context = Asking(question, base_prompt=base_prompt).context(pair)
        stream = Stream(pair, context, pair.composition, greedy, 0, origins=False)
        scorer = stream.loop.scorers["aligned"]
        counted: list[int] = []

        def advance(ids: torch.Tensor, keep: int, scorer=scorer, whole=scorer.advance, counted=counted) -> torch.Tensor:
            counted.append(len(ids))
            return whole(ids, keep)

        scorer.advance = advance
        found = stream.finish()
        # With a processor that changes nothing every token is composed, as it was before.
        changes_nothing = Stream(
            pair, context, pair.composition, greedy, 0, origins=False, masks=[lambda ids, scores: scores]
        )
        assert found.token_ids == changes_nothing.finish().token_ids
        with_origins = Stream(pair, context, pair.composition, greedy, 0).finish()
        assert with_origins.token_ids == found.token_ids
        assert all(piece.base_share is not None for piece in with_origins.pieces)
        passes, tokens = passes + len(counted), tokens + len(found.token_ids)
    assert passes < 0.5 * tokens


def test_what_plain_decoding_left_out_is_no_time_of_a_window_of_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock counts the tokens that q* reads: a window of three drafts reads three or four."""
    aligned: list[Counted] = []
    monkeypatch.setattr(loop_module, "perf_counter", lambda: float(sum(aligned[0].passes)) if aligned else 0.0)

    class Watched(Turns):
        seen: list[tuple[int, float | None]] = []

        def observe(self, size: int, seconds: float | None, chance: object) -> None:
            self.seen.append((size, seconds))

    class Known(Counted):
        def __init__(self, role: str, vocab: int) -> None:
            super().__init__(role, vocab)
            aligned.append(self)

    monkeypatch.setattr(sys.modules[__name__], "Counted", Known)
    run("dual:threshold=0.15", greedy=True, window=Watched(0))
    prompt = next(index for index, (_, seconds) in enumerate(Watched.seen[1:], start=1) if seconds is None)
    assert {seconds for _, seconds in Watched.seen[1:prompt]} == {0.0}
    assert None not in [seconds for _, seconds in Watched.seen[prompt + 1 :]]
    aligned.clear()
    Watched.seen.clear()
    run("base_only", greedy=True, window=Watched(*[0] * 9, 3))
    assert {seconds for size, seconds in Watched.seen if size == 3} <= {3.0, 4.0}
    assert max(aligned[0].passes) > 8

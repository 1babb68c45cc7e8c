"""How the loop's three questions are answered: which token to draft, which drafts stand, what an open position gets.

Two policies, sampling and greedy. They share an interface, so the loop never asks for a rule, a temperature or a
processor. Everything stays on the device; a window is read in one vector, at the end of `judge`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kad.composed import Composed
from kad.composition import Composition, composed, tempered, with_nobody, without_foreign
from kad.distribution import Distribution, first_max, problem_of, raised, row_blocks
from kad.errors import LogitsError
from kad.rules import CascadeRule, ThresholdRule
from kad.speculation.decisions import Draft, Open, Records, Rows, Settled, Verdict, Warp, read
from kad.verification import Randomness, Target, Verifier, few_target, verify_greedy


@dataclass(kw_only=True)
class Policy(ABC):
    """What greedy and sampling share: the target, pi where it must be composed, and the one transfer of a window.

    A cascade that drafts from q* itself, without processors, needs no log pi. The kept tokens and alpha are enough.

    Args:
        composition: how the models are composed.
        drafter: the role of the drafting model.
        warp: the user's logits processors. They act on log pi, and also on the drafting model's log-probabilities. Any
            draft is exact, and a draft that is more like pi is accepted more often.
        records: stores the scores that `generate` returns.

    Attributes:
        defers: whether the token after a window of accepted drafts is decided without the drafting model.
    """

    composition: Composition
    drafter: str
    warp: Warp | None = None
    records: Records | None = None
    defers: bool = False

    def __post_init__(self) -> None:
        untouched = self.drafter == "aligned" and self.warp is None and self.records is None
        self._direct = isinstance(self.composition.rule, CascadeRule) and untouched

    def draft(self, logits: Tensor, length: int) -> Draft:
        """Draft the token after a prefix of `length` from the drafting model's logits (vocab,)."""
        scores = self._draft_scores(logits, length)
        weights = self._weigh(scores)
        return Draft(self._choose(scores, weights), logits, weights)

    def judge(self, drafts: Sequence[Draft], rows: Rows, length: int, settled: Settled | None = None) -> Verdict:
        """Verify W drafts after a prefix of `length`, given the other models' logits (W + 1, vocab).

        Args:
            drafts: the drafts. None at all only if the policy `defers`.
            rows: the other models' logits.
            length: the number of tokens before the drafts.
            settled: the token before the drafts, if it was not read yet.

        Raises:
            LogitsError: a row of logits that is not a distribution.
            RuleError: keep probabilities outside [0, 1].
        """
        window = len(drafts)
        before = {role: logits[:window] for role, logits in rows.items()}
        tokens = torch.stack([draft.token for draft in drafts]) if drafts else rows["base"].new_zeros(0).long()
        recorded: tuple[Tensor, Tensor] | None = None
        alpha: Tensor | None
        if self._direct:
            target = self._direct_target(drafts, rows["base"] if self.defers else before["base"], tokens)
            accepted, token, chance = self._decide(target)
            alpha = target.alpha
        else:
            scores, log_pi, alpha = self._window_scores(drafts, before, length)
            flag = 0.0 * log_pi.amax(dim=-1)
            accepted, token, chance = self._decide(Target(self._weigh(scores), flag, _weights(drafts), tokens))
            recorded = scores, log_pi
        first = [] if settled is None else [settled.flag, settled.token]
        numbers = read(accepted, token, tokens, chance, *([] if alpha is None else [alpha]), *first)
        known = None if settled is None else settled.checked(*numbers[-2:])
        count, follows, end = int(numbers[0]), int(numbers[1]), 2 + 2 * window
        masses = numbers[end : len(numbers) - len(first)]
        if any(x != x for x in (*numbers[:end], *masses[: count + 1])):
            self._explain(drafts, rows if self.defers and count == window else before, length)
        reached = min(count + 1, window)
        verdict = Verdict(
            settled=known,
            drafts=[int(x) for x in numbers[2 : 2 + window]],
            accepted=count,
            token=token,
            follows=None if follows == self._vocab(rows["base"]) else follows,
            chance=numbers[2 + window : 2 + window + reached],
            alpha=masses[:reached],
        )
        if self.records is not None and recorded is not None:
            self.records.add(*(part[: count + (verdict.follows is not None)] for part in recorded))
        return verdict

    def open(self, rows: Rows) -> Open:
        """The position after a window of accepted drafts, from the other models' logits (1, vocab) there."""
        return Open(None if self.defers else rows)

    def settle(self, position: Open, logits: Tensor, length: int) -> Settled:
        """The token of an open position, from the drafting model's logits (vocab,) there."""
        if position.rows is None:
            draft = self.draft(logits, length)
            return Settled(draft.token, draft.weights[:1], partial(self._explain_draft, logits, length))
        models = self._composed(position.rows, logits.unsqueeze(0))
        log_pi = models.log_pi()
        scores = self._scores(log_pi, length)
        if self.records is not None:
            self.records.add(scores, log_pi)
        flag = log_pi[0, :1] + scores.amax(dim=-1)
        token = self._choose(scores[0], self._weigh(scores[0]))
        return Settled(token, flag, partial(self._explain_scores, models, log_pi, length))

    @abstractmethod
    def _weigh(self, scores: Tensor) -> Tensor:
        """What a token is chosen by, from scores (..., vocab)."""

    @abstractmethod
    def _choose(self, scores: Tensor, weights: Tensor) -> Tensor:
        """A token () from scores (vocab,) and their weights."""

    @abstractmethod
    def _decide(self, target: Target) -> tuple[Tensor, Tensor, Tensor]:
        """The number of accepted drafts (1,), the token () after them, and the acceptance probabilities (W,).

        A position that stays open has the size of the vocabulary for its token. A bad row makes its probability NaN.
        """

    def _composed(self, rows: Rows, drafter: Tensor) -> Composed:
        """The models at n positions. `drafter` is the logits (n, vocab) of the drafting model."""
        named = rows | {self.drafter: drafter}
        return composed(self.composition, named["base"], named["aligned"], named.get("reference"))

    def _scores(self, log_pi: Tensor, length: int) -> Tensor:
        """The scores of rows (n, vocab) after the processors, for prefixes of `length`, `length` + 1, ..."""
        if self.warp is None:
            return log_pi
        return torch.stack([self.warp(length + i, row) for i, row in enumerate(log_pi)])

    def _draft_scores(self, logits: Tensor, length: int) -> Tensor:
        """The drafting model's scores (vocab,): at the deferral temperature, and processed."""
        scores = tempered(self.composition, raised(logits, f"the {self.drafter} model's logits"))
        return scores if self.warp is None else self.warp(length, scores.log_softmax(dim=-1))

    def _window_scores(self, drafts: Sequence[Draft], rows: Rows, length: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Scores and log pi (W, vocab) at the drafted positions, and the deferred mass (W,) of a cascade there."""
        drafted = torch.stack([d.logits for d in drafts])
        parts = [
            self._composed({role: logits[block] for role, logits in rows.items()}, drafted[block]).log_pi_and_alpha()
            for block in row_blocks(drafted)
        ]
        log_pi = torch.cat([part for part, _ in parts])
        masses = [log_alpha for _, log_alpha in parts if log_alpha is not None and self.drafter == "aligned"]
        return self._scores(log_pi, length), log_pi, torch.cat(masses).squeeze(-1).exp() if masses else None

    def _direct_target(self, drafts: Sequence[Draft], base_logits: Tensor, tokens: Tensor) -> Target:
        """The target in probabilities, without log pi."""
        rows = [self._window_rows(drafts[block], base_logits[block]) for block in row_blocks(base_logits)]
        lists = [few for few in (row.few() for row in rows) if few is not None]
        if len(lists) == len(rows):
            return few_target(lists, [draft.weights for draft in drafts], tokens, self._vocab(base_logits))
        kept, alpha = zip(*(row.cascade() for row in rows), strict=True)
        draft = _weights(drafts) if drafts else kept[0][:0]
        return Target(torch.cat(kept), torch.cat(alpha), draft, tokens)

    def _window_rows(self, drafts: Sequence[Draft], base_logits: Tensor) -> Composed:
        rule = self.composition.rule
        own = without_foreign(self.composition, raised(base_logits))
        base = aligned = Distribution.in_probabilities(tempered(self.composition, own))
        if not (isinstance(rule, ThresholdRule) and not rule.reads_aligned):
            q = _weights(drafts)
            logits = tempered(self.composition, raised(torch.stack([draft.logits for draft in drafts])))
            aligned = Distribution(logits, q.amax(dim=-1).log(), probabilities=q)
        return with_nobody(self.composition, base, aligned)

    def _vocab(self, base_logits: Tensor) -> int:
        return base_logits.shape[-1] - self.composition.nobody

    def _explain(self, drafts: Sequence[Draft], rows: Rows, length: int) -> None:
        """Raise the error for NaN. This reads every row of the window."""
        window = {role: logits[: len(drafts)] for role, logits in rows.items()}
        for role, logits in rows.items():
            if problem := problem_of(f"the {role} model's logits", logits):
                raise LogitsError(problem)
        drafted = torch.stack([d.logits for d in drafts])
        if problem := problem_of(f"the {self.drafter} model's logits", drafted):
            raise LogitsError(problem)
        for i, row in enumerate(drafted):
            self._explain_draft(row, length + i)
        models = self._composed(window, drafted)
        self._explain_scores(models, models.log_pi(), length)

    def _explain_draft(self, logits: Tensor, length: int) -> None:
        for name, row in (
            (f"the {self.drafter} model's logits", logits),
            ("the processed scores of the draft", self._draft_scores(logits, length)),
        ):
            if problem := problem_of(name, row):
                raise LogitsError(problem)

    def _explain_scores(self, models: Composed, log_pi: Tensor, length: int) -> None:
        if problem_of("pi", log_pi):
            models.explain()
        problem = problem_of("the processed scores of pi", self._scores(log_pi, length))
        raise LogitsError(problem or "a window of drafts came out as NaN.")


@dataclass(kw_only=True)
class SampledPolicy(Policy):
    """Drafts are drawn, and verified so that the emitted tokens follow pi.

    Args:
        verifier: verifies token by token, or the window as a block.
        randomness: the source of all random decisions.
    """

    verifier: Verifier
    randomness: Randomness

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = self.composition.rule
        # Where the cutoff does not read q*, p alone says what it keeps at the position after the window.
        self.defers = self._direct and isinstance(rule, ThresholdRule) and not rule.reads_aligned

    def _weigh(self, scores: Tensor) -> Tensor:
        return scores.softmax(dim=-1)

    def _choose(self, scores: Tensor, weights: Tensor) -> Tensor:
        return self.randomness.draw(weights)

    def _decide(self, target: Target) -> tuple[Tensor, Tensor, Tensor]:
        if target.drafts.shape[0] == 0:
            accepted, scale = target.drafts.new_zeros(1), target.alpha
        else:
            accepted, scale = self.verifier(target, self.randomness)
        token = target.token(self.randomness.draw(target.follow(accepted, scale)))
        return accepted, token, target.ratio.clamp(max=1.0)


@dataclass(kw_only=True)
class GreedyPolicy(Policy):
    """Drafts are accepted as long as they are the first choice of pi, or of its scores after the processors."""

    def _weigh(self, scores: Tensor) -> Tensor:
        return scores.softmax(dim=-1) if self._direct else scores

    def _choose(self, scores: Tensor, weights: Tensor) -> Tensor:
        return first_max(scores)

    def _decide(self, target: Target) -> tuple[Tensor, Tensor, Tensor]:
        choice = first_max(target.pi if self._direct else target.kept)
        accepted = verify_greedy(choice, target.drafts)
        index = torch.cat((choice, choice.new_full((1,), target.kept.shape[-1]))).index_select(0, accepted)
        # A row of NaN has a first choice too. Its flag travels with the acceptance probability.
        flag = target.alpha + target.draft[:, 0] if self._direct else target.alpha
        chance = torch.add((choice == target.drafts).to(flag.dtype), flag, alpha=0.0)
        return accepted, target.token(index.squeeze(0)), chance


def choose_policy(
    composition: Composition,
    *,
    drafter: str,
    greedy: bool,
    verifier: Verifier,
    randomness: Randomness,
    warp: Warp | None,
    records: Records | None,
) -> Policy:
    """The policy of one call."""
    if greedy:
        return GreedyPolicy(composition=composition, drafter=drafter, warp=warp, records=records)
    return SampledPolicy(
        composition=composition,
        drafter=drafter,
        warp=warp,
        records=records,
        verifier=verifier,
        randomness=randomness,
    )


def _weights(drafts: Sequence[Draft]) -> Tensor:
    return torch.stack([draft.weights for draft in drafts])

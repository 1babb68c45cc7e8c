"""How the loop's three questions are answered: which token to draft, which drafts stand, what follows a whole window.

Two policies, sampling and greedy. They share an interface, so the loop never asks for a rule, a temperature or a
processor. Everything stays on the device; a window is read in one vector, at the end of `judge`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kad.composed import Composed
from kad.composition import Composition, composed, tempered, with_nobody, without_foreign
from kad.distribution import Distribution, first_max, problem_of, raised, row_blocks
from kad.errors import LogitsError
from kad.rules import CascadeRule, ThresholdRule
from kad.speculation.decisions import Bonus, Draft, Records, Rows, Verdict, Warp
from kad.verification import Randomness, Target, Verifier, few_target, verify_greedy


@dataclass(kw_only=True)
class Policy(ABC):
    """What greedy and sampling share: pi where it must be composed, and the one transfer of a window.

    Args:
        composition: how the models are composed.
        drafter: the role of the drafting model.
        warp: the user's logits processors. They act on log pi, and also on the drafting model's log-probabilities. Any
            draft is exact, and a draft that is more like pi is accepted more often.
        records: stores the scores that `generate` returns.
    """

    composition: Composition
    drafter: str
    warp: Warp | None = None
    records: Records | None = None
    _alpha: Sequence[float] = ()

    @abstractmethod
    def draft(self, logits: Tensor, length: int) -> Draft:
        """Draft the token after a prefix of `length` from the drafting model's logits (vocab,)."""

    @abstractmethod
    def judge(self, drafts: Sequence[Draft], rows: Rows, length: int) -> Verdict:
        """Verify W drafts after a prefix of `length`, given the other models' logits (W, vocab).

        Raises:
            LogitsError: a row of logits that is not a distribution.
            RuleError: keep probabilities outside [0, 1].
        """

    def bonus(self, rows: Rows) -> Bonus:
        """What follows a window of accepted drafts, from the other models' logits (1, vocab) there."""
        return Bonus(rows=rows)

    @abstractmethod
    def settle(self, bonus: Bonus, logits: Tensor, length: int) -> Tensor:
        """The token () left open by `bonus`, from the drafting model's logits (vocab,) at the same position."""

    def deferred(self, rows: Rows, drafts: Sequence[Draft], count: int) -> float | None:
        """The deferred mass, summed over the first `count` positions of the last judged window. None if unknown."""
        return sum(self._alpha[:count]) if self._alpha else None

    def _verdict(
        self,
        drafts: Sequence[Draft],
        rows: Rows,
        length: int,
        accepted: Tensor,
        token: Tensor,
        chance: Tensor,
        alpha: Tensor | None,
    ) -> Verdict:
        """Read the window in one vector: how many drafts are accepted (1,), the probabilities (W,), alpha (W,)."""
        numbers: list[float] = torch.cat([accepted, chance, *([] if alpha is None else [alpha])]).tolist()
        if any(number != number for number in numbers):
            self._explain(drafts, rows, length)
        count, window = int(numbers[0]), len(drafts)
        self._alpha = numbers[1 + window :]
        return Verdict(count, None if count == window else token, numbers[1 : 1 + min(count + 1, window)])

    def _composed(self, rows: Rows, drafter: Tensor) -> Composed:
        """The models at n positions. `drafter` is the logits (n, vocab) of the drafting model."""
        named = rows | {self.drafter: drafter}
        return composed(self.composition, named["base"], named["aligned"], named.get("reference"))

    def _scores(self, log_pi: Tensor, length: int) -> Tensor:
        """The scores of rows (n, vocab) after the processors, for prefixes of `length`, `length` + 1, ..."""
        if self.warp is None:
            return log_pi
        return torch.stack([self.warp(length + i, row) for i, row in enumerate(log_pi)])

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

    def _settled_scores(self, bonus: Bonus, logits: Tensor, length: int) -> Tensor:
        """Scores (vocab,) at the open position."""
        assert bonus.rows is not None
        models = self._composed(bonus.rows, logits.unsqueeze(0))
        log_pi = models.log_pi()
        if bool(log_pi[:, 0].isnan().any()):
            models.explain()
        scores = self._scores(log_pi, length)
        if self.records is not None:
            self.records.add(scores, log_pi)
        return scores.squeeze(0)

    def _draft_scores(self, logits: Tensor, length: int) -> Tensor:
        """The drafting model's scores (vocab,): at the deferral temperature, and processed."""
        scores = tempered(self.composition, raised(logits, f"the {self.drafter} model's logits"))
        return scores if self.warp is None else self.warp(length, scores.log_softmax(dim=-1))

    def _record(self, verdict: Verdict, scores: Tensor, log_pi: Tensor) -> Verdict:
        if self.records is not None:
            emitted = verdict.accepted + (verdict.correction is not None)
            self.records.add(scores[:emitted], log_pi[:emitted])
        return verdict

    def _explain(self, drafts: Sequence[Draft], rows: Rows, length: int) -> None:
        """Raise the error for NaN. This reads every row of the window."""
        drafted = torch.stack([d.logits for d in drafts])
        for role, logits in (rows | {self.drafter: drafted}).items():
            if problem := problem_of(f"the {role} model's logits", logits):
                raise LogitsError(problem)
        for i, row in enumerate(drafted):
            if problem := problem_of("the processed scores of the draft", self._draft_scores(row, length + i)):
                raise LogitsError(problem)
        log_pi = self._composed(rows, drafted).log_pi()
        if problem_of("pi", log_pi):
            self._composed(rows, drafted).explain()
        problem = problem_of("the processed scores of pi", self._scores(log_pi, length))
        raise LogitsError(problem or "a window of drafts came out as NaN.")


@dataclass(kw_only=True)
class Sampling(Policy):
    """Drafts are drawn, and verified so that the emitted tokens follow pi.

    A cascade that drafts from q* itself, without processors, needs no log pi. The kept tokens and alpha are enough.

    Args:
        verifier: verifies token by token, or the window as a block.
        randomness: the source of all random decisions.
    """

    verifier: Verifier
    randomness: Randomness

    def __post_init__(self) -> None:
        rule = self.composition.rule
        untouched = self.drafter == "aligned" and self.warp is None and self.records is None
        self._direct = isinstance(rule, CascadeRule) and untouched
        # Where the cutoff does not read q*, p alone says what it keeps at the position after the window.
        self._defers = self._direct and isinstance(rule, ThresholdRule) and not rule.reads_aligned

    def draft(self, logits: Tensor, length: int) -> Draft:
        q = self._draft_scores(logits, length).softmax(dim=-1)
        return Draft(self.randomness.draw(q), logits, q)

    def judge(self, drafts: Sequence[Draft], rows: Rows, length: int) -> Verdict:
        if self._direct:
            target, recorded = self._direct_target(drafts, rows["base"]), None
            alpha: Tensor | None = target.alpha
        else:
            scores, log_pi, alpha = self._window_scores(drafts, rows, length)
            pi, recorded = scores.softmax(dim=-1), (scores, log_pi)
            target = Target(pi, torch.zeros_like(pi[:, 0]), _weights(drafts), _tokens(drafts))
        accepted, scale = self.verifier(target, self.randomness)
        token = target.token(self.randomness.draw(target.follow(accepted, scale)))
        verdict = self._verdict(drafts, rows, length, accepted, token, target.ratio.clamp(max=1.0), alpha)
        return verdict if recorded is None else self._record(verdict, *recorded)

    def bonus(self, rows: Rows) -> Bonus:
        if not self._defers:
            return Bonus(rows=rows)
        target = self._direct_target([], rows["base"])
        token = target.token(self.randomness.draw(target.follow(target.drafts.new_zeros(1), target.alpha)))
        if bool(target.alpha.isnan().any()):
            raise LogitsError(problem_of("the base model's logits", rows["base"]) or "NaN in the base model's logits.")
        return Bonus() if int(token) == self._vocab(rows["base"]) else Bonus(token)

    def settle(self, bonus: Bonus, logits: Tensor, length: int) -> Tensor:
        if bonus.rows is None:
            return self.draft(logits, length).token
        return self.randomness.draw(self._settled_scores(bonus, logits, length).softmax(dim=-1))

    def _direct_target(self, drafts: Sequence[Draft], base_logits: Tensor) -> Target:
        """The target in probabilities."""
        tokens = _tokens(drafts) if drafts else torch.zeros(0, dtype=torch.long, device=base_logits.device)
        rows = [self._window_rows(drafts[block], base_logits[block]) for block in row_blocks(base_logits)]
        lists = [few for few in (row.few() for row in rows) if few is not None]
        if len(lists) == len(rows):
            return few_target(lists, [draft.weights for draft in drafts], tokens, self._vocab(base_logits))
        kept, alpha = zip(*(row.cascade() for row in rows), strict=True)
        draft = _weights(drafts) if drafts else kept[0][:0]
        return Target(torch.cat(kept), torch.cat(alpha), draft, tokens)

    def _window_rows(self, drafts: Sequence[Draft], base_logits: Tensor) -> Composed:
        own = without_foreign(self.composition, raised(base_logits))
        base = aligned = Distribution.in_probabilities(tempered(self.composition, own))
        if drafts and not self._defers:
            q = _weights(drafts)
            logits = tempered(self.composition, raised(torch.stack([draft.logits for draft in drafts])))
            aligned = Distribution(logits, q.amax(dim=-1).log(), probabilities=q)
        return with_nobody(self.composition, base, aligned)

    def _vocab(self, base_logits: Tensor) -> int:
        return base_logits.shape[-1] - self.composition.nobody


@dataclass(kw_only=True)
class Greedy(Policy):
    """Drafts are accepted as long as they are the first choice of pi, or of its scores after the processors."""

    def draft(self, logits: Tensor, length: int) -> Draft:
        scores = self._draft_scores(logits, length)
        return Draft(first_max(scores), logits, scores)

    def judge(self, drafts: Sequence[Draft], rows: Rows, length: int) -> Verdict:
        scores, log_pi, alpha = self._window_scores(drafts, rows, length)
        choice, tokens = first_max(scores), _tokens(drafts)
        accepted = verify_greedy(choice, tokens)
        token = choice.index_select(0, accepted.clamp(max=len(drafts) - 1)).squeeze(0)
        # A row of NaN has a first choice too. Its flag travels with the acceptance probability.
        chance = (choice == tokens).to(log_pi.dtype) + 0.0 * log_pi.amax(dim=-1)
        return self._record(self._verdict(drafts, rows, length, accepted, token, chance, alpha), scores, log_pi)

    def settle(self, bonus: Bonus, logits: Tensor, length: int) -> Tensor:
        return first_max(self._settled_scores(bonus, logits, length))


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
        return Greedy(composition=composition, drafter=drafter, warp=warp, records=records)
    return Sampling(
        composition=composition,
        drafter=drafter,
        warp=warp,
        records=records,
        verifier=verifier,
        randomness=randomness,
    )


def _tokens(drafts: Sequence[Draft]) -> Tensor:
    return torch.stack([draft.token for draft in drafts])


def _weights(drafts: Sequence[Draft]) -> Tensor:
    return torch.stack([draft.weights for draft in drafts])

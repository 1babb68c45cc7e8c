"""The loop's three decisions: which token to draft, which drafts to accept, which token an open position gets.

First come the values that the loop and a policy exchange: `Draft`, `Verdict`, `Open`, `Settled`. Then the policies.

There are two, sampling and greedy. They share an interface, so the loop never asks for a rule, a temperature or a
processor. Everything stays on the device; a window is read in one vector, at the end of `judge`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from kad.errors import LogitsError, RuleError
from kad.method.composed import Composed
from kad.method.composition import Composition, check_shapes, composed, in_order, raise_if_bad, tempered
from kad.method.distribution import Distribution, ListedRows, Rows, first_max, raised, raised_rows, refuse
from kad.method.rules import CascadeRule, ThresholdRule
from kad.method.verification import Randomness, Target, Verifier, verify_greedy

# Logits (rows, vocab) by the role of the model, without the drafting model.
RowsByRole = dict[str, Rows]
# (length of the prefix, log-probabilities (vocab,)) -> scores (vocab,): the user's logits processors.
Warp = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Draft:
    """One drafted token.

    Attributes:
        token: ().
        logits: (vocab,), the drafting model's.
        weights: (vocab,), the probabilities it was drawn from, or the scores of which it has the largest.
    """

    token: Tensor
    logits: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Open:
    """The position after a window of accepted drafts, where the next row of the drafting model settles the token.

    Attributes:
        rows: the logits (1, vocab) of the other models there. None if the token was deferred, so that the drafting
            model draws it alone.
        target: the target of a window that ends there, if p was asked first.
    """

    rows: RowsByRole | None = None
    target: Target | None = None


@dataclass(frozen=True)
class Settled:
    """The token of an open position. Nothing of it has been read from the device.

    Attributes:
        token: ().
        flag: (1,), NaN if a row that it was chosen from is not a distribution.
        explain: raises the error for such a row.
    """

    token: Tensor
    flag: Tensor
    explain: Callable[[], None]

    def read(self) -> int:
        """The token, in a transfer of its own."""
        (flag,), (token,) = read(self.flag, self.token)
        return self.checked(flag, token)

    def checked(self, flag: float, token: float) -> int:
        """The token as a number, if its flag is one."""
        if flag != flag:
            self.explain()
        return int(token)


@dataclass(frozen=True)
class Verdict:
    """The outcome for one window, read from the device in one vector.

    Attributes:
        settled: the token that was settled before the drafts, if there was one.
        drafts: the drafts.
        accepted: how many of them are accepted.
        token: the token () that follows them. Nothing stands there if the position is still open.
        follows: the same as a number. None if the position is still open.
        open: what is known there then.
        chance: the acceptance probabilities min(1, pi/q) at the positions reached, at most accepted + 1 of them.
        alpha: the deferred mass at these positions. Empty if it is not known.
    """

    settled: int | None
    drafts: Sequence[int]
    accepted: int
    token: Tensor
    follows: int | None
    open: Open | None
    chance: Sequence[float]
    alpha: Sequence[float]


def read(*parts: Tensor) -> list[list[float]]:
    """The numbers of each part, of any shape and dtype, in one transfer. Tokens below 2^24 are exact in every dtype."""
    numbers = iter(torch.cat([part.reshape(-1) for part in parts]).tolist())
    return [list(islice(numbers, part.numel())) for part in parts]


@dataclass
class Records:
    """Scores and raw log pi of the emitted tokens, if `generate` must return them: (1, vocab) rows, one a token."""

    scores: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    def add(self, scores: Tensor, logits: Tensor) -> None:
        """Record rows (n, vocab)."""
        self.scores += [row.unsqueeze(0) for row in scores]
        self.logits += [row.unsqueeze(0) for row in logits]


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
        alone: whether the drafting model is the only one, which is p and q* at once.

    Attributes:
        p_first: whether p alone is asked first for the token after a window of accepted drafts. Where it leaves the
            token open, and only there, the drafting model has to read.
    """

    composition: Composition
    drafter: str
    warp: Warp | None = None
    records: Records | None = None
    alone: bool = False
    p_first: bool = False

    def __post_init__(self) -> None:
        untouched = self.drafter == "aligned" and self.warp is None and self.records is None
        rule = self.composition.rule
        self._direct = isinstance(rule, CascadeRule) and untouched
        # Where the cutoff does not read q*, p alone says what it keeps.
        self._p_alone = isinstance(rule, ThresholdRule) and not rule.reads_aligned
        self.p_first = self._direct and self._p_alone and not self.alone

    def draft(self, logits: Tensor, length: int) -> Draft:
        """Draft the token after a prefix of `length` from the drafting model's logits (vocab,)."""
        scores = self._draft_scores(logits, length)
        weights = self._weigh(scores)
        return Draft(self._choose(scores, weights), logits, weights)

    def judge(self, drafts: Sequence[Draft], rows: RowsByRole, length: int, settled: Settled | None = None) -> Verdict:
        """Verify W drafts after a prefix of `length`, given the other models' logits (W + 1, vocab).

        Args:
            drafts: the drafts. None at all only if p is asked first.
            rows: the other models' logits.
            length: the number of tokens before the drafts.
            settled: the token before the drafts, if it was not read yet.

        Raises:
            LogitsError: a row of logits that is not a distribution.
            RuleError: keep probabilities outside [0, 1].
        """
        window, base = len(drafts), rows["base"]
        tokens = _stack([draft.token for draft in drafts], torch.empty(0, dtype=torch.long, device=base.device))
        if self._direct:
            target = self._direct_target(drafts, base[: window + self.p_first], tokens)
            alpha = target.alpha
        else:
            log_pi, log_alpha = self._composed(rows, _logits(drafts)).log_pi_and_alpha()
            scores = self._scores(log_pi, length)
            top = log_pi.amax(dim=-1)
            flag = 0.0 * (top if scores is log_pi else top + scores.amax(dim=-1))  # NaN for a row without a token
            weights = torch.stack([draft.weights for draft in drafts])
            target = Target(self._weigh(scores), flag, weights, tokens)
            known = log_alpha if self.drafter == "aligned" else None
            alpha = tokens.new_zeros(0) if known is None else known.squeeze(-1).exp()
        accepted, token, chance = self._decide(target)
        if target.tokens is not None:
            token = torch.cat((target.tokens, tokens.new_full((1,), base.shape[-1])))[token]
        first = [] if settled is None else [settled.flag, settled.token]
        (stand,), (then,), chosen, chances, masses, *others = read(accepted, token, tokens, chance, alpha, *first)
        count, reached = int(stand), min(int(stand) + 1, window)
        is_open, bonus = then == base.shape[-1], {role: logits[window : window + 1] for role, logits in rows.items()}
        # Too little is known of the row after accepted drafts. The text may end with them, so it stays open.
        lacks = count == window > 0 and len(masses) > window and masses[window] != masses[window]
        lacks = lacks and isinstance(base, ListedRows)
        verdict = Verdict(
            settled=None if settled is None else settled.checked(*(number for (number,) in others)),
            drafts=[int(x) for x in chosen],
            accepted=count,
            token=token,
            follows=None if is_open or lacks else int(then),
            open=Open(bonus) if lacks else self.open(bonus, target) if is_open else None,
            chance=chances[:reached],
            alpha=masses[:reached],
        )
        if any(x != x for x in (*chances, *masses[: window if lacks else count + 1])):
            used = window + (self.p_first and count == window and not lacks)
            seen = {role: logits[:used] for role, logits in rows.items()}
            self._explain([draft.logits for draft in drafts], seen, length)
        if self.records is not None:
            emitted = count + (verdict.follows is not None)
            self.records.add(scores[:emitted], log_pi[:emitted])
        return verdict

    def known(self, drafts: Sequence[Draft], rows: RowsByRole) -> Sequence[Draft]:
        """The drafts that can be judged: those before the first row of which too little of p is known.

        A window that ends there is exact, because its end depends on these drafts alone. Arguments as `judge`.

        Raises:
            RuleError: there is no such draft.
        """
        if not drafts or not isinstance(rows["base"], ListedRows):
            return drafts
        models = self._composed(rows, _logits(drafts))
        if models.lacking is None:
            return drafts
        first = int(models.base.logits[:, 0].isnan().nonzero()[0])
        if first == 0:
            raise RuleError(models.lacking)
        return drafts[:first]

    @abstractmethod
    def open(self, rows: RowsByRole, target: Target | None = None) -> Open:
        """The position after a window of accepted drafts.

        Args:
            rows: the other models' logits (1, vocab) there.
            target: the target of the window, if p was asked first.
        """

    def settle(self, position: Open, logits: Tensor, length: int) -> Settled:
        """The token of an open position, from the drafting model's logits (vocab,) there."""
        if position.rows is None:
            draft = self.draft(logits, length)
            return Settled(draft.token, draft.weights[:1], partial(self._explain, [logits], {}, length))
        log_pi = self._composed(position.rows, logits.unsqueeze(0)).log_pi()
        scores = self._scores(log_pi, length)
        if self.records is not None:
            self.records.add(scores, log_pi)
        flag = log_pi[0, :1] + 0.0 * scores.amax(dim=-1)  # NaN if the processors left no token
        token = self._choose(scores[0], self._weigh(scores[0]))
        return Settled(token, flag, partial(self._explain, [logits], position.rows, length))

    @abstractmethod
    def _weigh(self, scores: Tensor) -> Tensor:
        """What a token is chosen by, from scores (..., vocab)."""

    @abstractmethod
    def _choose(self, scores: Tensor, weights: Tensor) -> Tensor:
        """A token () from scores (vocab,) and their weights."""

    @abstractmethod
    def _decide(self, target: Target) -> tuple[Tensor, Tensor, Tensor]:
        """The number of accepted drafts (1,), the token () after them, and the acceptance probabilities (W,).

        Tokens are columns of the target. For that of a position that stays open it is their number. A bad row makes its
        probability NaN.
        """

    def _composed(self, rows: RowsByRole, drafter: Tensor) -> Composed:
        """The models at n positions, from the drafting model's logits (n, vocab) and at least n rows of the others."""
        named = {role: logits[: len(drafter)] for role, logits in rows.items()} | {self.drafter: drafter}
        return composed(self.composition, *in_order(named))

    def _scores(self, log_pi: Tensor, length: int) -> Tensor:
        """The scores of rows (n, vocab) after the processors, for prefixes of `length`, `length` + 1, ..."""
        if self.warp is None:
            return log_pi
        return torch.stack([self.warp(length + i, row) for i, row in enumerate(log_pi)])

    def _warmed(self, logits: Tensor) -> Tensor:
        """The drafting model's logits at the deferral temperature. At 1, softmax takes off what is far from 0."""
        return logits if self.composition.deferral_temperature == 1.0 else tempered(self.composition, logits)

    def _draft_scores(self, logits: Tensor, length: int) -> Tensor:
        """The drafting model's scores (vocab,): at the deferral temperature, and processed."""
        scores = self._warmed(raised(logits, f"the {self.drafter} model's logits"))
        return scores if self.warp is None else self.warp(length, scores.log_softmax(dim=-1))

    def _direct_target(self, drafts: Sequence[Draft], base_logits: Rows, tokens: Tensor) -> Target:
        """The target in probabilities, without log pi. Where few tokens are kept, a CPU looks at these alone."""
        weights = [draft.weights for draft in drafts]
        for row in weights:
            check_shapes(base_logits[:1], row.unsqueeze(0))
        base = Distribution.in_probabilities(tempered(self.composition, raised_rows(base_logits)))
        if self._p_alone:
            models = Composed(self.composition.rule, base, base)  # whose cutoff does not read the second one
        else:
            probabilities, logits = torch.stack(weights), self._warmed(raised(_logits(drafts)))
            aligned = Distribution(logits, probabilities.amax(dim=-1).log(), probabilities=probabilities)
            models = Composed(self.composition.rule, base, aligned)
        # At least one token: p may keep none.
        few, empty = models.cascade_at_few(tokens if drafts else tokens.new_zeros(1)), base.probs()[:0]
        if few is None:
            return Target(*models.cascade(), _stack(weights, empty), tokens)
        columns, kept, alpha = few
        draft = _stack([row[columns] for row in weights], kept[:0])
        return Target(kept, alpha, draft, torch.searchsorted(columns, tokens), columns)

    def _explain(self, drafted: Sequence[Tensor], rows: RowsByRole, length: int) -> None:
        """Raise the error for rows that came out as NaN. This reads every value.

        Args:
            drafted: n rows (vocab,), the drafting model's logits.
            rows: the other models' logits at the same positions, perhaps at one more. Empty if they had no part.
            length: the length of the first prefix.
        """
        named = rows | ({self.drafter: torch.stack(list(drafted))} if drafted else {})
        for role, logits in named.items():
            refuse(f"the {role} model's logits", logits)
        if self._p_alone and isinstance(rows.get("base"), ListedRows):
            base = Distribution.of(rows["base"])
            if lacking := Composed(self.composition.rule, base, base).lacking:
                raise RuleError(lacking)
        for i, row in enumerate(drafted):
            refuse("the processed scores of the draft", self._draft_scores(row, length + i))
        if rows and drafted:
            models = in_order({role: logits[: len(drafted)] for role, logits in named.items()})
            log_pi = composed(self.composition, *models).log_pi()
            raise_if_bad(log_pi, self.composition, *models)
            refuse("the processed scores of pi", self._scores(log_pi, length))
        raise LogitsError("a window of drafts came out as NaN.")


@dataclass(kw_only=True)
class SampledPolicy(Policy):
    """Drafts are drawn, and verified so that the emitted tokens follow pi.

    Args:
        verifier: verifies token by token, or the window as a block.
        randomness: the source of all random decisions.
    """

    verifier: Verifier
    randomness: Randomness

    def open(self, rows: RowsByRole, target: Target | None = None) -> Open:
        """See `Policy.open`. What p does not keep, q* draws alone."""
        return Open(None if self.p_first else rows)

    def _weigh(self, scores: Tensor) -> Tensor:
        return scores.softmax(dim=-1)

    def _choose(self, scores: Tensor, weights: Tensor) -> Tensor:
        return self.randomness.draw(weights)

    def _decide(self, target: Target) -> tuple[Tensor, Tensor, Tensor]:
        if target.drafts.shape[0] == 0:
            accepted, scale = target.drafts.new_zeros(1), target.alpha
        else:
            accepted, scale = self.verifier(target, self.randomness)
        token = self.randomness.draw(target.follow(accepted, scale))
        return accepted, token, target.ratio.clamp(max=1.0)


@dataclass(kw_only=True)
class GreedyPolicy(Policy):
    """Drafts are accepted as long as they are the first choice of pi, or of its scores after the processors."""

    def open(self, rows: RowsByRole, target: Target | None = None) -> Open:
        """See `Policy.open`."""
        return Open(rows, target if self.p_first else None)

    def settle(self, position: Open, logits: Tensor, length: int) -> Settled:
        """See `Policy.settle`. What was composed of p is not composed again."""
        if position.target is None or position.rows is None:
            return super().settle(position, logits, length)
        check_shapes(position.rows["base"], logits.unsqueeze(0))
        target = position.target
        pi = target.alpha[-1:] * self._weigh(self._draft_scores(logits, length))
        if target.tokens is None:
            pi = pi + target.kept[-1]
        else:
            pi[target.tokens] += target.kept[-1]
        explain = partial(self._explain, [logits], position.rows, length)
        return Settled(first_max(pi), pi[:1], explain)

    def _weigh(self, scores: Tensor) -> Tensor:
        return scores.softmax(dim=-1) if self._direct else scores

    def _choose(self, scores: Tensor, weights: Tensor) -> Tensor:
        return first_max(scores)

    def _decide(self, target: Target) -> tuple[Tensor, Tensor, Tensor]:
        window, columns = target.drafts.shape[0], target.kept.shape[-1]
        choice = first_max(target.pi if self._direct else target.kept)
        accepted = verify_greedy(choice, target.drafts)
        after = target.first_of_p() if self.p_first else choice.new_full((1,), columns)
        index = torch.cat((choice, after)).index_select(0, accepted)
        # A row of NaN has a first choice too. Its flag travels with the acceptance probability.
        flag = target.alpha[:window] + target.draft[:, 0] if self._direct else target.alpha
        chance = torch.add((choice == target.drafts).to(flag.dtype), flag, alpha=0.0)
        return accepted, index.squeeze(0), chance


def choose_policy(*, greedy: bool, verifier: Verifier, randomness: Randomness, **shared: Any) -> Policy:
    """The policy of one call. `shared` are the arguments of `Policy`."""
    if greedy:
        return GreedyPolicy(**shared)
    return SampledPolicy(verifier=verifier, randomness=randomness, **shared)


def _stack(parts: Sequence[Tensor], empty: Tensor) -> Tensor:
    """The parts as one tensor; without parts, the empty one."""
    return torch.stack(list(parts)) if parts else empty


def _logits(drafts: Sequence[Draft]) -> Tensor:
    return torch.stack([draft.logits for draft in drafts])


def warp_of(processors: Any, ids: Tensor, padding: int) -> Warp | None:
    """The processors as a function of the length of the prefix. None if there are none.

    They see the ids that `generate` gave, with padding. They get a copy of the row, because some change it in place.
    """
    if not processors:
        return None

    def warp(length: int, log_probs: Tensor) -> Tensor:
        scores: Tensor = processors(ids[: padding + length].unsqueeze(0), log_probs.unsqueeze(0).clone())
        return scores[0]

    return warp

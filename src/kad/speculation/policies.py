"""How the loop's three questions are answered: which token to draft, which drafts stand, what follows a whole window.

Four policies: sparse for threshold rules without warpers, dense for everything else; each greedy or sampling. They
share an interface, so the loop never asks for a rule, a temperature or a warper.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kad.composition import compose, deferred_mass
from kad.distribution import Distribution, raised
from kad.errors import UsageError
from kad.rules import CascadeRule, Rule, ThresholdRule
from kad.verification import (
    DenseTarget,
    Randomness,
    SparseTarget,
    Verdict,
    Verifier,
    draw_kept,
    draw_token,
    first_choice,
    stack_rows,
    target_of,
    verify_greedy,
)

# Rows of logits (rows, vocab) by the model's role, the drafting model's left out.
Rows = dict[str, Tensor]
# (length of the prefix, log-probabilities (vocab,)) -> scores (vocab,): the user's logits processors.
Warp = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Draft:
    """One drafted token.

    Attributes:
        token: ().
        logits: (vocab,), the drafting model's.
        log_draft: (vocab,), log-probabilities it was drawn from where those are not the plain softmax of `logits`.
        row: the plain softmax, where the policy works with it.
    """

    token: Tensor
    logits: Tensor
    log_draft: Tensor | None = None
    row: Distribution | None = None


@dataclass(frozen=True)
class Bonus:
    """What follows a window whose drafts all stood.

    Attributes:
        token: (), if it could be drawn without the drafting model; else it must be settled with its next row.
        rows: the other models' logits (1, vocab) at this position, where settling needs them; None if the token was
            deferred, and so is the drafting model's to draw.
    """

    token: Tensor | None = None
    rows: Rows | None = None


@dataclass
class Records:
    """Scores and raw log pi of the emitted tokens, where `generate` is to return them; one (1, vocab) row a token."""

    scores: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    def add(self, scores: Tensor, logits: Tensor) -> None:
        """Record rows (n, vocab)."""
        self.scores += [row.unsqueeze(0) for row in scores]
        self.logits += [row.unsqueeze(0) for row in logits]


class Policy(ABC):
    """The interface; see the module's docstring."""

    @abstractmethod
    def draft(self, logits: Tensor, length: int) -> Draft:
        """Draft the token after a prefix of `length` from the drafting model's logits (vocab,)."""

    @abstractmethod
    def judge(self, drafts: Sequence[Draft], rows: Rows, length: int) -> Verdict:
        """Verify W drafts after a prefix of `length`, given the other models' logits (W, vocab)."""

    @abstractmethod
    def bonus(self, rows: Rows) -> Bonus:
        """What follows a whole window, from the other models' logits (1, vocab) there."""

    @abstractmethod
    def settle(self, bonus: Bonus, logits: Tensor, length: int) -> Tensor:
        """The token () left open by `bonus`, from the drafting model's logits (vocab,) at the same position."""

    def deferred(self, rows: Rows, drafts: Sequence[Draft], count: int) -> float | None:
        """The deferred mass, summed over the first `count` positions of the window just judged; None if unknown."""
        return None


@dataclass
class SparseSampling(Policy):
    """A threshold rule at temperature 1: no pass over the vocabulary but the normalisers of p and q*."""

    rule: ThresholdRule
    verifier: Verifier
    randomness: Randomness
    deferral_temperature: float = 1.0
    _alpha: Tensor | None = None

    def draft(self, logits: Tensor, length: int) -> Draft:
        row = Distribution.from_logits(self._scale(logits), "the aligned model's logits")
        return Draft(draw_token(row, self.randomness), logits, row=row)

    def judge(self, drafts: Sequence[Draft], rows: Rows, length: int) -> Verdict:
        base, aligned = self._base(rows), _stacked(drafts)
        target = target_of(self.rule, base, aligned, _tokens(drafts))
        self._alpha = target.alpha if isinstance(target, SparseTarget) else None
        return self.verifier(target, self.randomness)

    def bonus(self, rows: Rows) -> Bonus:
        if self.rule.reads_aligned:
            return Bonus(rows=rows)
        return Bonus(draw_kept(self.rule, self._base(rows), self.randomness))

    def settle(self, bonus: Bonus, logits: Tensor, length: int) -> Tensor:
        row = Distribution.from_logits(self._scale(logits), "the aligned model's logits")
        if bonus.rows is None:
            return draw_token(row, self.randomness)
        log_pi = _compose(self.rule, bonus.rows | {"aligned": logits.unsqueeze(0)}, self.deferral_temperature)
        return draw_token(Distribution.from_logits(log_pi.squeeze(0)), self.randomness)

    def deferred(self, rows: Rows, drafts: Sequence[Draft], count: int) -> float | None:
        return None if self._alpha is None else float(self._alpha[:count].sum())

    def _base(self, rows: Rows) -> Distribution:
        return Distribution.from_logits(self._scale(rows["base"]), "the base model's logits")

    def _scale(self, logits: Tensor) -> Tensor:
        return logits if self.deferral_temperature == 1.0 else logits / self.deferral_temperature


@dataclass
class SparseGreedy(SparseSampling):
    """A threshold rule, greedy, without processors: argmax pi is a kept token or q*'s own argmax."""

    def draft(self, logits: Tensor, length: int) -> Draft:
        return Draft(logits.argmax(dim=-1), logits)

    def judge(self, drafts: Sequence[Draft], rows: Rows, length: int) -> Verdict:
        tokens = _tokens(drafts)
        aligned = Distribution.from_logits(self._scale(torch.stack([d.logits for d in drafts])))
        choice, self._alpha = first_choice(self.rule, self._base(rows), aligned, tokens)
        return verify_greedy(choice, tokens)

    def bonus(self, rows: Rows) -> Bonus:
        return Bonus(rows=rows)

    def settle(self, bonus: Bonus, logits: Tensor, length: int) -> Tensor:
        assert bonus.rows is not None
        best = logits.argmax(dim=-1, keepdim=True)
        aligned = Distribution.from_logits(self._scale(logits.unsqueeze(0)))
        return first_choice(self.rule, self._base(bonus.rows), aligned, best)[0].squeeze(0)


@dataclass
class DenseSampling(Policy):
    """Any rule, any processors: pi is composed where it is needed, and the user's processors act on log pi.

    The drafting model's log-probabilities pass through the same processors: any draft is exact, and one shaped like pi
    is accepted more often.
    """

    rule: Rule
    drafter: str
    verifier: Verifier
    randomness: Randomness
    warp: Warp | None = None
    deferral_temperature: float = 1.0
    records: Records | None = None

    def draft(self, logits: Tensor, length: int) -> Draft:
        log_draft = self._scores(length, torch.log_softmax(raised(logits) / self.deferral_temperature, dim=-1))
        row = Distribution.from_logits(log_draft, "the draft's scores")
        return Draft(self._choose(row), logits, log_draft=row.log_probs())

    def judge(self, drafts: Sequence[Draft], rows: Rows, length: int) -> Verdict:
        log_pi = self._log_pi(rows, torch.stack([d.logits for d in drafts]))
        scores = torch.stack([self._scores(length + i, row) for i, row in enumerate(log_pi)])
        verdict = self._verify(scores, drafts)
        if self.records is not None:
            emitted = verdict.accepted + (verdict.correction is not None)
            self.records.add(scores[:emitted], log_pi[:emitted])
        return verdict

    def bonus(self, rows: Rows) -> Bonus:
        return Bonus(rows=rows)

    def settle(self, bonus: Bonus, logits: Tensor, length: int) -> Tensor:
        assert bonus.rows is not None
        log_pi = self._log_pi(bonus.rows, logits.unsqueeze(0))
        scores = self._scores(length, log_pi[0])
        if self.records is not None:
            self.records.add(scores.unsqueeze(0), log_pi)
        return self._choose(Distribution.from_logits(scores, "the processed scores of pi"))

    def deferred(self, rows: Rows, drafts: Sequence[Draft], count: int) -> float | None:
        if not isinstance(self.rule, CascadeRule) or self.drafter != "aligned":
            return None
        aligned = torch.stack([d.logits for d in drafts[:count]])
        scale = self.deferral_temperature
        return float(deferred_mass(self.rule, rows["base"][:count] / scale, aligned / scale).sum())

    def _verify(self, scores: Tensor, drafts: Sequence[Draft]) -> Verdict:
        log_pi = Distribution.from_logits(scores, "the processed scores of pi").log_probs()
        log_draft = torch.stack([d.log_draft for d in drafts if d.log_draft is not None])
        return self.verifier(DenseTarget(log_pi, log_draft, _tokens(drafts)), self.randomness)

    def _choose(self, row: Distribution) -> Tensor:
        return draw_token(row, self.randomness)

    def _log_pi(self, rows: Rows, drafter: Tensor) -> Tensor:
        return _compose(self.rule, rows | {self.drafter: drafter}, self.deferral_temperature)

    def _scores(self, length: int, log_probs: Tensor) -> Tensor:
        return log_probs if self.warp is None else self.warp(length, log_probs)


@dataclass
class DenseGreedy(DenseSampling):
    """Any rule, any processors, greedy: drafts stand while they are the argmax of the processed log pi."""

    def _verify(self, scores: Tensor, drafts: Sequence[Draft]) -> Verdict:
        return verify_greedy(scores.argmax(dim=-1), _tokens(drafts))

    def _choose(self, row: Distribution) -> Tensor:
        return row.logits.argmax(dim=-1)


def choose_policy(
    rule: Rule,
    *,
    drafter: str,
    greedy: bool,
    verifier: Verifier,
    randomness: Randomness,
    warp: Warp | None,
    deferral_temperature: float,
    records: Records | None,
) -> Policy:
    """The sparse policy where it is exact: a threshold rule, drafting from q* itself, nothing acting on log pi."""
    if isinstance(rule, ThresholdRule) and drafter == "aligned" and warp is None and records is None:
        sparse = SparseGreedy if greedy else SparseSampling
        return sparse(rule, verifier, randomness, deferral_temperature)
    dense = DenseGreedy if greedy else DenseSampling
    return dense(rule, drafter, verifier, randomness, warp, deferral_temperature, records)


def _tokens(drafts: Sequence[Draft]) -> Tensor:
    return torch.stack([draft.token for draft in drafts])


def _stacked(drafts: Sequence[Draft]) -> Distribution:
    return stack_rows([draft.row for draft in drafts if draft.row is not None])


def _compose(rule: Rule, rows: Rows, deferral_temperature: float) -> Tensor:
    """log pi (rows, vocab)."""
    if rule.needs_reference and "reference" not in rows:
        raise UsageError(f"Rule {rule} needs the reference model's rows.")
    return compose(
        rule,
        rows["base"],
        rows["aligned"],
        rows.get("reference"),
        deferral_temperature=deferral_temperature,
    )

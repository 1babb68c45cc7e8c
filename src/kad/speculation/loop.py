"""The speculative loop: settle what the last window left open, draft, verify, commit.

Positions. `ids` holds the committed tokens. A scorer has read a prefix of them, and between drafting and verifying also
the drafts. A window drafts d_1..d_W after the committed tokens. The drafting model runs W times, over one token each.
The other models run once, over the drafts and the committed tokens that they have not read. They give W rows that
verify the drafts, and one more, the bonus row. After the verdict all models drop the rejected drafts.

If all drafts are accepted, the drafting model has no row at the bonus position yet. A bonus token that needs this row
stays open. The first forward pass of the drafting model in the next window settles it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Literal

import torch
from torch import Tensor

from kad.engines.base import Scorer
from kad.speculation.decisions import Bonus, Draft, Rows
from kad.speculation.policies import Policy
from kad.speculation.statistics import SpeculationStatistics
from kad.speculation.windows import WindowSize

# Given all ids (length,) and the number of new ones: how many of the new ones stay, and whether the text ends there.
StopRule = Callable[[Tensor, list[int]], tuple[int, bool]]
Event = Literal["accepted", "corrected", "bonus", "deferred"]


@dataclass(frozen=True)
class Origin:
    """How one token came about.

    Attributes:
        event: "accepted": the token is an accepted draft. "corrected": a draft was rejected, and the token was drawn
            instead. "bonus": the token after a window of accepted drafts. "deferred": the same, drawn from q* without
            verification. None if nothing was drafted.
        rejected_draft: (), the rejected draft.
        rows: the logits (vocab,) of the models at this position, by role, if the loop keeps them.
    """

    event: Event | None = None
    rejected_draft: Tensor | None = None
    rows: Rows | None = None


@dataclass(frozen=True)
class Emitted:
    """One token of the output and its origin."""

    token: int
    origin: Origin


# Tokens (), not yet committed, with their origins.
_Tokens = list[tuple[Tensor, Origin]]


@dataclass
class SpeculativeLoop:
    """One run over one prompt.

    Args:
        ids: (capacity,), the prompt followed by room for as many new tokens as are wanted.
        length: the length of the prompt, at least 1.
        drafter: the role of the drafting model.
        scorers: the models by role, with `drafter` among them. Each may have read a prefix of the prompt.
        policy: decides what to draft and which drafts to accept.
        window: decides how many tokens to draft.
        stop: applied to every batch of committed tokens, before they are emitted.
        statistics: counts and times. The loop updates them.
        keep_rows: give each token the rows of logits that decided it. The drafting model then reads the position of a
            bonus token at once, in a forward pass of its own.
    """

    ids: Tensor
    length: int
    drafter: str
    scorers: dict[str, Scorer]
    policy: Policy
    window: WindowSize
    stop: StopRule
    statistics: SpeculationStatistics = field(default_factory=SpeculationStatistics)
    keep_rows: bool = False
    finished: bool = False
    _open: tuple[Bonus, Origin] | None = None

    def run(self) -> Iterator[list[Emitted]]:
        """Tokens as they are committed, one or more at a time, until a stop rule or the end of `ids`."""
        for scorer in self.scorers.values():
            # A model must read at least the last token to predict the next one.
            scorer.rollback(self.length - 1)
        reads_prompt = True
        while not self.finished and self._room > 0:
            start = perf_counter()
            if self._open is not None:
                yield self._commit(self._settle(*self._open))
                if self.finished or self._room == 0:
                    return
            size = min(self.window.next(), self._room - 1)
            drafts = self._draft(size)
            tokens, chance = self._verify(drafts)
            if tokens:
                yield self._commit(tokens)
            # The first window reads the prompt, so its time says nothing about other windows.
            self.window.observe(size, None if reads_prompt else perf_counter() - start, chance)
            reads_prompt = False

    @property
    def _room(self) -> int:
        return self.ids.shape[0] - self.length

    def bring_level(self) -> None:
        """Leave every model as plain decoding does: it has read all tokens but the last one."""
        end = self.length - 1
        for scorer in self.scorers.values():
            scorer.rollback(end)
            if scorer.processed < end:
                scorer.advance(self.ids[scorer.processed : end], 1)

    def _settle(self, bonus: Bonus, origin: Origin) -> _Tokens:
        """Draw the open bonus token now that the drafting model has its row."""
        with self._timed("seconds_draft"):
            logits = self._advance_drafter(self.length)
            token = self.policy.settle(bonus, logits, self.length)
        self._open = None
        if bonus.rows is None:
            self.statistics.bonus_deferred += 1
        else:
            self.statistics.bonus_composed += 1
        rows = None if origin.rows is None else origin.rows | {self.drafter: logits}
        return [(token, replace(origin, rows=rows))]

    def _draft(self, size: int) -> list[Draft]:
        """Draft `size` tokens, written behind the committed ones."""
        drafts: list[Draft] = []
        with self._timed("seconds_draft"):
            for end in range(self.length, self.length + size):
                drafts.append(self.policy.draft(self._advance_drafter(end), end))
                self.ids[end] = drafts[-1].token
        return drafts

    def _verify(self, drafts: list[Draft]) -> tuple[_Tokens, list[float]]:
        """The tokens that follow the committed ones, possibly none, and the acceptance probabilities of the drafts."""
        size = len(drafts)
        with self._timed("seconds_verify"):
            rows = self._advance_others(size)
            if size == 0:
                self.statistics.count_window(0, 0)
                self._roll_back(self.length)
                return self._bonus(rows, drafts), []
            window = {role: logits[:size] for role, logits in rows.items()}
            verdict = self.policy.judge(drafts, window, self.length)
            self.statistics.count_window(size, verdict.accepted, verdict.chance)
            self._count_deferred(window, drafts, len(verdict.chance))
            tokens: _Tokens = [
                (draft.token, Origin("accepted", rows=self._rows(rows, i, draft)))
                for i, draft in enumerate(drafts[: verdict.accepted])
            ]
            self._roll_back(self.length + verdict.accepted)
            if verdict.correction is None:
                tokens += self._bonus({role: logits[size:] for role, logits in rows.items()}, drafts)
            else:
                self.statistics.corrections += 1
                fallen = drafts[verdict.accepted]
                origin = Origin("corrected", fallen.token, self._rows(rows, verdict.accepted, fallen))
                tokens.append((verdict.correction, origin))
            return tokens, list(verdict.chance)

    def _bonus(self, rows: Rows, drafts: list[Draft]) -> _Tokens:
        """The bonus token, if it can be drawn now. Otherwise it stays open."""
        bonus = self.policy.bonus(rows)
        seen = self._rows(rows, 0)
        if bonus.token is None:
            event: Event = "deferred" if bonus.rows is None else "bonus"
            self._open = (bonus, Origin(event if drafts else None, rows=seen))
            return []
        self.statistics.bonus_kept += 1
        if seen is not None:
            seen |= {self.drafter: self._advance_drafter(self.length + len(drafts))}
        return [(bonus.token, Origin("bonus" if drafts else None, rows=seen))]

    def _rows(self, rows: Rows, index: int, draft: Draft | None = None) -> Rows | None:
        """The logits at one position. Those of the drafting model only if it drafted there."""
        if not self.keep_rows:
            return None
        own = {} if draft is None else {self.drafter: draft.logits}
        return {role: logits[index] for role, logits in rows.items()} | own

    def _commit(self, tokens: _Tokens) -> list[Emitted]:
        """Append tokens, up to where the stop rule ends the text."""
        end = self.length + len(tokens)
        self.ids[self.length : end] = torch.stack([token.to(self.ids.device) for token, _ in tokens])
        values = self.ids[self.length : end].tolist()
        kept, self.finished = self.stop(self.ids[:end], values)
        self.length += kept
        self.statistics.tokens += kept
        if self.finished:
            self._roll_back(self.length)
        return [Emitted(value, origin) for value, (_, origin) in zip(values[:kept], tokens[:kept], strict=True)]

    def _advance_drafter(self, end: int) -> Tensor:
        scorer = self.scorers[self.drafter]
        return scorer.advance(self.ids[scorer.processed : end], 1)[0]

    def _advance_others(self, size: int) -> Rows:
        end = self.length + size
        return {
            role: scorer.advance(self.ids[scorer.processed : end], size + 1)
            for role, scorer in self.scorers.items()
            if role != self.drafter
        }

    def _roll_back(self, length: int) -> None:
        """Drop rejected drafts: each model drops what it has read after `length`. This is the only place that does."""
        for scorer in self.scorers.values():
            scorer.rollback(length)

    def _count_deferred(self, rows: Rows, drafts: list[Draft], count: int) -> None:
        total = self.policy.deferred(rows, drafts, count)
        if total is not None:
            self.statistics.deferred_mass_sum += total
            self.statistics.deferred_mass_rows += count

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = perf_counter()
        try:
            yield
        finally:
            setattr(self.statistics, name, getattr(self.statistics, name) + perf_counter() - start)

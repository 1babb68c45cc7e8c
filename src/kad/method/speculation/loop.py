"""The speculative loop: settle what the last window left open, draft, verify, commit.

Positions. `ids` holds the committed tokens. A scorer has read a prefix of them, and between drafting and verifying also
the drafts. A window drafts d_1..d_W after the committed tokens. The drafting model runs W times, over one token each.
The other models run once, over the drafts and the committed tokens that they have not read. They give W rows that
verify the drafts, and one more, the bonus row. After the verdict all models drop the rejected drafts.

If all drafts are accepted, the drafting model has no row at the bonus position yet. A bonus token that needs this row
stays open. The first forward pass of the drafting model in the next window settles it.

Plain decoding is windows of no drafts: every token is a bonus token. Where p alone decides it, the drafting model does
not run. What it has missed it reads later, in one forward pass, when a token needs its row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Literal, cast

from torch import Tensor

from kad.errors import KadError
from kad.method.scorer import Scorer
from kad.method.speculation.policies import Draft, Open, Policy, RowsByRole, Settled
from kad.method.speculation.statistics import SpeculationStatistics
from kad.method.speculation.windows import WindowSize

# Given all ids (length,) and the number of new ones: how many of the new ones stay, and whether the text ends there.
StopRule = Callable[[Tensor, list[int]], tuple[int, bool]]
Event = Literal["accepted", "corrected", "bonus", "deferred"]
# So many tokens that p alone decided wait at most for the row of the drafting model, where rows are kept.
_HELD_BACK = 8


@dataclass(frozen=True)
class Origin:
    """How one token came about.

    Attributes:
        event: "accepted": the token is an accepted draft. "corrected": a draft was rejected, and the token was drawn
            instead. "bonus": the token after a window of accepted drafts. "deferred": the same, drawn from q* without
            verification. None if nothing was drafted.
        rejected_draft: the rejected draft.
        dropped_drafts: the drafts after it, which are dropped too.
        rows: the logits (vocab,) of the models at this position, by role, if the loop keeps them.
    """

    event: Event | None = None
    rejected_draft: int | None = None
    dropped_drafts: tuple[int, ...] = ()
    rows: RowsByRole | None = None


@dataclass(frozen=True)
class Emitted:
    """One token of the output and its origin."""

    token: int
    origin: Origin


@dataclass
class SpeculativeLoop:
    """One run over one prompt.

    Args:
        ids: (capacity,), the prompt followed by room for all new tokens.
        length: the length of the prompt, at least 1.
        drafter: the role of the drafting model.
        scorers: the models by role, with `drafter` among them. Each may have read a prefix of the prompt.
        policy: decides what to draft and which drafts to accept.
        window: decides how many tokens to draft.
        stop: applied to every batch of committed tokens, before they are emitted.
        statistics: counts and times. The loop updates them.
        keep_rows: give each token the rows of logits of all models. Tokens that p alone decided are then held back
            until the drafting model has read them, several at once.
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
    _open: tuple[Open, Origin] | None = None
    _settled: tuple[Settled, Origin] | None = None
    _prompt: int = 0
    _left_out: int = 0
    _waiting: list[Emitted] = field(default_factory=list)
    _ready: list[Emitted] = field(default_factory=list)

    def run(self) -> Iterator[list[Emitted]]:
        """Tokens as they are committed, one or more at a time, until a stop rule or the end of `ids`."""
        for scorer in self.scorers.values():
            # A model must read at least the last token to predict the next one.
            scorer.rollback(self.length - 1)
        self._prompt, first = self.length - 1, True
        while not self.finished and self._room > 0:
            problem = None
            try:
                self._one_window(first)
            except KadError as error:  # what was decided before it is not lost
                problem = error
            ends = self.finished or self._room == 0 or problem is not None
            if self._waiting and (ends or (not self._ready and first) or len(self._waiting) == _HELD_BACK):
                self._catch_up()
            if self._ready:
                tokens, self._ready = self._ready, []
                yield tokens
            if problem is not None:
                raise problem
            first = False

    def _one_window(self, first: bool) -> None:
        """One window. Before it the token that the last one left open, if it is open still."""
        proposal = self.window.next()
        if proposal > 0 and self._left_out > 1:
            self._catch_up()  # What plain decoding left out says nothing about the time of a window of drafts.
        start, drafter = perf_counter(), self.scorers[self.drafter]
        unread = drafter.processed < self._prompt
        if self._open is not None:
            self._settle(*self._open)
            # The token is read with the verdict on the drafts that follow it. Without drafts it is read at once.
            if proposal == 0 or self._room < 3:
                self._commit(self._take_settled())
                if self.finished or self._room == 0:
                    return
        size = min(proposal, self._room - 1 - self._unread)
        tokens, chance = self._verify(self._draft(size))
        if size == 0 and self._open is not None:
            self._settle(*self._open)
            tokens = self._take_settled()
        if tokens:
            self._commit(tokens)
        # A window in which a model reads the prompt says nothing about the time of others.
        reads_prompt = first or (unread and drafter.processed >= self._prompt)
        self.window.observe(size, None if reads_prompt else perf_counter() - start, chance)

    @property
    def _room(self) -> int:
        return self.ids.shape[0] - self.length

    @property
    def _unread(self) -> int:
        """The number of tokens, 0 or 1, that stand behind the committed ones and were not read from the device."""
        return int(self._settled is not None)

    def bring_level(self) -> None:
        """Put every model into the state after plain decoding: it has read all tokens but the last one."""
        end = self.length - 1
        for scorer in self.scorers.values():
            scorer.rollback(end)
            if scorer.processed < end:
                scorer.advance(self.ids[scorer.processed : end], 1)

    def _settle(self, position: Open, origin: Origin) -> None:
        """Choose the token of the open position, now that the drafting model has its row. It is not read."""
        with self._timed("seconds_draft"):
            logits = self._advance_drafter(self.length)
            settled = self.policy.settle(position, logits, self.length)
            self.ids[self.length] = settled.token
        if position.rows is None:
            self.statistics.bonus_deferred += 1
        else:
            self.statistics.bonus_composed += 1
        rows = None if origin.rows is None else origin.rows | {self.drafter: logits}
        self._open, self._settled = None, (settled, replace(origin, rows=rows))

    def _take_settled(self, token: int | None = None) -> list[Emitted]:
        """The settled token, if there is one. If its number is not given, it is read."""
        if self._settled is None:
            return []
        (settled, origin), self._settled = self._settled, None
        return [Emitted(settled.read() if token is None else token, origin)]

    def _draft(self, size: int) -> list[Draft]:
        """Draft `size` tokens, written behind the committed ones."""
        drafts: list[Draft] = []
        start = self.length + self._unread
        with self._timed("seconds_draft"):
            for end in range(start, start + size):
                drafts.append(self.policy.draft(self._advance_drafter(end), end))
                self.ids[end] = drafts[-1].token
        return drafts

    def _verify(self, drafts: list[Draft]) -> tuple[list[Emitted], list[float]]:
        """The tokens that follow the committed ones, possibly none, and the acceptance probabilities of the drafts."""
        size, start = len(drafts), self.length + self._unread
        with self._timed("seconds_verify"):
            rows = self._advance_others(start + size, size + 1)
            if size == 0 and not self.policy.p_first:
                self.statistics.count_window(0, 0)
                self._roll_back(start)
                self._open = (self.policy.open(rows), Origin(rows=self._rows(rows, 0)))
                return [], []
            drafts = list(self.policy.known(drafts, rows))
            if len(drafts) < size:
                size = len(drafts)
                self.scorers[self.drafter].rollback(start + size - 1)
            verdict = self.policy.judge(drafts, rows, start, self._settled and self._settled[0])
            self.statistics.count_window(size, verdict.accepted, verdict.chance)
            self.statistics.deferred_mass_sum += sum(verdict.alpha)
            self.statistics.deferred_mass_rows += len(verdict.alpha)
            end = start + verdict.accepted
            tokens = self._take_settled(verdict.settled)
            tokens += [
                Emitted(token, Origin("accepted", rows=self._rows(rows, i, draft.logits)))
                for i, (token, draft) in enumerate(zip(verdict.drafts[: verdict.accepted], drafts, strict=False))
            ]
            self._roll_back(end)
            if verdict.open is not None:
                event: Event = "deferred" if verdict.open.rows is None else "bonus"
                self._open = (verdict.open, Origin(event if drafts else None, rows=self._rows(rows, size)))
                return tokens, list(verdict.chance)
            assert verdict.follows is not None
            if verdict.accepted < size:
                self.statistics.corrections += 1
                rejected, *after = verdict.drafts[verdict.accepted :]
                seen = self._rows(rows, verdict.accepted, drafts[verdict.accepted].logits)
                origin = Origin("corrected", rejected, tuple(after), seen)
            else:
                self.statistics.bonus_kept += 1
                self._left_out += 1
                origin = Origin("bonus" if drafts else None, rows=self._rows(rows, size))
            self.ids[end] = verdict.token
            return [*tokens, Emitted(verdict.follows, origin)], list(verdict.chance)

    def _rows(self, rows: RowsByRole, index: int, own: Tensor | None = None) -> RowsByRole | None:
        """The logits at one position, if they are kept. `own` is the row of the drafting model, if it is known."""
        if not self.keep_rows:
            return None
        return {role: logits[index] for role, logits in rows.items()} | ({} if own is None else {self.drafter: own})

    def _commit(self, tokens: list[Emitted]) -> None:
        """Append tokens, which stand in `ids` already, up to where the stop rule ends the text."""
        count, self.finished = self.stop(self.ids[: self.length + len(tokens)], [emitted.token for emitted in tokens])
        self.length += count
        self.statistics.tokens += count
        if self.finished:
            self._roll_back(self.length)
        for emitted in tokens[:count]:
            rows = emitted.origin.rows
            (self._ready if rows is None or self.drafter in rows else self._waiting).append(emitted)

    def _catch_up(self) -> None:
        """The drafting model reads what plain decoding left out, but for the last token."""
        with self._timed("seconds_draft"):
            self._advance_drafter(self.length - 1)

    def _advance_drafter(self, end: int) -> Tensor:
        """The drafting model's row after `end` tokens. What waits for the rows before it gets them."""
        scorer, waiting = self.scorers[self.drafter], self._waiting
        count = len(waiting) + (end >= self.length)
        rows = cast("Tensor", scorer.advance(self.ids[scorer.processed : end], max(count, 1)))
        for each, row in zip(waiting, rows, strict=False):
            seen = {**(each.origin.rows or {}), self.drafter: row}
            self._ready.append(Emitted(each.token, replace(each.origin, rows=seen)))
        self._waiting, self._left_out = [], 0
        return rows[-1]

    def _advance_others(self, end: int, keep: int) -> RowsByRole:
        return {
            role: scorer.advance(self.ids[scorer.processed : end], keep)
            for role, scorer in self.scorers.items()
            if role != self.drafter
        }

    def _roll_back(self, length: int) -> None:
        """Drop rejected drafts: each model drops what it has read after `length`. This is the only place that does."""
        for scorer in self.scorers.values():
            scorer.rollback(length)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = perf_counter()
        try:
            yield
        finally:
            setattr(self.statistics, name, getattr(self.statistics, name) + perf_counter() - start)

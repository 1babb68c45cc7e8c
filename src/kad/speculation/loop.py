"""The speculative loop: settle what the last window left open, draft, verify, commit.

Positions. `ids` holds the committed tokens. A scorer has processed a prefix of them (and, between drafting and
verifying, drafts). A window drafts d_1..d_W after the committed tokens; the drafting model runs W times, one token
each; the others run once, on what they have not seen of the committed tokens and on the drafts, and give the W rows
that verify the drafts and one more, the bonus row. After the verdict all of them forget the drafts that fell.

When all drafts stand, the drafting model has no row at the bonus position yet. A bonus that needs it is left open, and
settled by the next window's first forward of the drafting model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor

from kad.speculation.policies import Bonus, Draft, Policy, Rows
from kad.speculation.scorers import Scorer
from kad.speculation.statistics import SpeculationStatistics
from kad.speculation.windows import WindowSize

# Given all ids (length,) and how many of them are new: how many of the new ones stay, and whether that is the end.
StopRule = Callable[[Tensor, int], tuple[int, bool]]


@dataclass
class SpeculativeLoop:
    """One run over one prompt.

    Args:
        ids: (capacity,), the prompt followed by room for as many new tokens as are wanted.
        length: of the prompt, at least 1.
        drafter: the role of the drafting model.
        scorers: the models by role, `drafter` among them; each may have processed a prefix of the prompt.
        policy: what to draft and what stands.
        window: how many to draft.
        stop: applied to every batch of committed tokens, before they are emitted.
        statistics: counts and times, kept up to date.
    """

    ids: Tensor
    length: int
    drafter: str
    scorers: dict[str, Scorer]
    policy: Policy
    window: WindowSize
    stop: StopRule
    statistics: SpeculationStatistics = field(default_factory=SpeculationStatistics)
    finished: bool = False
    _open: Bonus | None = None

    def run(self) -> Iterator[Tensor]:
        """Tokens (n,) as they are committed, n >= 1, until a stop rule or the end of `ids`."""
        for scorer in self.scorers.values():
            # A model must see at least the last token to say what follows it.
            scorer.rollback(self.length - 1)
        reads_prompt = True
        while not self.finished and self._room > 0:
            start = perf_counter()
            if self._open is not None:
                yield self._commit(self._settle(self._open))
                if self.finished or self._room == 0:
                    return
            size = min(self.window.next(), self._room - 1)
            drafts = self._draft(size)
            tokens, chance = self._verify(drafts)
            if tokens:
                yield self._commit(tokens)
            # The first window reads the prompt: its time says nothing about windows.
            self.window.observe(size, None if reads_prompt else perf_counter() - start, chance)
            reads_prompt = False

    @property
    def _room(self) -> int:
        return self.ids.shape[0] - self.length

    def _settle(self, bonus: Bonus) -> list[Tensor]:
        """Draw the open bonus token now that the drafting model has its row."""
        with self._timed("seconds_draft"):
            logits = self._advance_drafter(self.length)
            token = self.policy.settle(bonus, logits, self.length)
        self._open = None
        if bonus.rows is None:
            self.statistics.bonus_deferred += 1
        else:
            self.statistics.bonus_composed += 1
        return [token]

    def _draft(self, size: int) -> list[Draft]:
        """Draft `size` tokens, written behind the committed ones."""
        drafts: list[Draft] = []
        with self._timed("seconds_draft"):
            for end in range(self.length, self.length + size):
                drafts.append(self.policy.draft(self._advance_drafter(end), end))
                self.ids[end] = drafts[-1].token
        return drafts

    def _verify(self, drafts: list[Draft]) -> tuple[list[Tensor], list[float]]:
        """Tokens that follow the committed ones, perhaps none, and the acceptance probabilities on the way."""
        size = len(drafts)
        with self._timed("seconds_verify"):
            rows = self._advance_others(size)
            if size == 0:
                self.statistics.count_window(0, 0)
                self._roll_back(self.length)
                return self._bonus(rows), []
            window = {role: logits[:size] for role, logits in rows.items()}
            verdict = self.policy.judge(drafts, window, self.length)
            self.statistics.count_window(size, verdict.accepted, verdict.chance)
            self._count_deferred(window, drafts, len(verdict.chance))
            tokens = [draft.token for draft in drafts[: verdict.accepted]]
            self._roll_back(self.length + verdict.accepted)
            if verdict.correction is None:
                tokens += self._bonus({role: logits[size:] for role, logits in rows.items()})
            else:
                self.statistics.count_correction(drafts[verdict.accepted].token)
                tokens.append(verdict.correction)
            return tokens, list(verdict.chance)

    def _bonus(self, row: Rows) -> list[Tensor]:
        """The token after a whole window if it can be known now; else it stays open."""
        bonus = self.policy.bonus(row)
        if bonus.token is None:
            self._open = bonus
            return []
        self.statistics.bonus_kept += 1
        return [bonus.token]

    def _commit(self, tokens: list[Tensor]) -> Tensor:
        """Append tokens, as far as the stop rule lets them."""
        end = self.length + len(tokens)
        self.ids[self.length : end] = torch.stack([token.to(self.ids.device) for token in tokens])
        kept, self.finished = self.stop(self.ids[:end], len(tokens))
        start, self.length = self.length, self.length + kept
        self.statistics.tokens += kept
        if self.finished:
            self._roll_back(self.length)
        return self.ids[start : self.length]

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
        """The only place where models forget: everything past `length`, whoever has got how far."""
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

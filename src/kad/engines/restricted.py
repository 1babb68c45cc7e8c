"""Scorer of a base model that never keeps some tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from kad.method.distribution import RowsWithRest, move_to_rest
from kad.method.scorer import Scorer
from kad.tokens.never_kept import NeverKept, foreign_tokens


class Restricted:
    """The rows of another scorer, in which the probability of the tokens that p never keeps belongs to the rest.

    Args:
        scorer: the base model's scorer.
        never_kept: the tokens.
        shared: the number of tokens of the prompt, as `scorer` counts them.
        deferral_temperature: see `kad.method.distribution.move_to_rest`.
    """

    def __init__(self, scorer: Scorer, never_kept: NeverKept, shared: int, deferral_temperature: float = 1.0) -> None:
        self.scorer, self._never_kept, self._shared = scorer, never_kept, shared
        self._temperature = deferral_temperature
        self._answer: list[int] = []

    @property
    def processed(self) -> int:
        """See `kad.method.scorer.Scorer`."""
        return self.scorer.processed

    @property
    def reversible(self) -> bool:
        """See `kad.method.scorer.Scorer`."""
        return self.scorer.reversible

    def advance(self, ids: Tensor, keep: int) -> RowsWithRest:
        """See `kad.method.scorer.Scorer`."""
        new = ids[max(self._shared - self.processed, 0) :]
        rows = self.scorer.advance(ids, keep)
        vocab = rows.shape[-1]
        if self._never_kept.stops is None:  # then the answer need not be read from the device
            foreign = foreign_tokens(self._never_kept.foreign_ids, vocab, rows.device)
            return move_to_rest(rows, foreign, self._temperature)
        self._answer += new.tolist()
        ends = range(len(self._answer) - keep + 1, len(self._answer) + 1)
        tokens = torch.stack([self._never_kept.after(self._answer[:end], vocab) for end in ends])
        return move_to_rest(rows, tokens.to(rows.device), self._temperature)

    def rollback(self, length: int) -> None:
        """See `kad.method.scorer.Scorer`."""
        self.scorer.rollback(length)
        del self._answer[max(length - self._shared, 0) :]

    def release(self) -> None:
        """See `kad.method.scorer.Scorer`."""
        self.scorer.release()

"""Scorer of a base model with its own prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kad.method.distribution import Rows
from kad.method.scorer import Scorer


class OwnPrompt:
    """A scorer for callers that count in the tokens of another prompt, with the same answer after it.

    Args:
        scorer: the model's scorer. It may have read a prefix of its own prompt.
        prompt: the tokens of its own prompt, at least one.
        shared: the number of tokens of the callers' prompt, at least one.
    """

    def __init__(self, scorer: Scorer, prompt: Sequence[int], shared: int) -> None:
        self.scorer, self._prompt, self._shared = scorer, list(prompt), shared

    @property
    def processed(self) -> int:
        """How many of the callers' tokens count as read. The prompt counts as a whole."""
        read = self.scorer.processed
        whole = len(self._prompt)
        return read - whole + self._shared if read >= whole else min(read, self._shared - 1)

    @property
    def reversible(self) -> bool:
        """See `kad.method.scorer.Scorer`."""
        return self.scorer.reversible

    def advance(self, ids: Tensor, keep: int) -> Rows:
        """See `kad.method.scorer.Scorer`. In the place of what is left of the callers' prompt it reads its own."""
        unread = self._prompt[self.scorer.processed :]
        new = ids[max(self._shared - self.processed, 0) :] if unread else ids
        own = torch.cat((torch.tensor(unread, dtype=ids.dtype, device=ids.device), new))
        return self.scorer.advance(own, keep)

    def rollback(self, length: int) -> None:
        """See `kad.method.scorer.Scorer`."""
        answer = max(length - self._shared, 0)
        self.scorer.rollback(len(self._prompt) + answer - (length < self._shared))

    def release(self) -> None:
        """See `kad.method.scorer.Scorer`."""
        self.scorer.release()

    def has_read(self, ids: Sequence[int]) -> list[int]:
        """The tokens that the model has read, given those of the callers' prompt and of the answer."""
        return [*self._prompt, *ids[self._shared :]][: self.scorer.processed]

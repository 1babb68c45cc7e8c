"""A scorer whose model has read a prompt of its own, and never keeps what ends an answer in that prompt's form."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kad.method.nobody import never_kept
from kad.method.scorer import Scorer


class OwnPrompt:
    """A scorer for callers that count in the tokens of another prompt, with the same answer after it.

    Args:
        scorer: the model's scorer. It may have read a prefix of its own prompt.
        prompt: the tokens of its own prompt, at least one.
        shared: the number of tokens of the callers' prompt, at least one.
        never: given the answer so far, the tokens (as bool, by id) that are never kept. The rows then have one more
            entry, see `kad.method.nobody.never_kept`.
        deferral_temperature: see `kad.method.nobody.never_kept`.
    """

    def __init__(
        self,
        scorer: Scorer,
        prompt: Sequence[int],
        shared: int,
        never: Callable[[Sequence[int]], Tensor] | None = None,
        deferral_temperature: float = 1.0,
    ) -> None:
        self.scorer, self._prompt, self._shared = scorer, list(prompt), shared
        self._never, self._temperature = never, deferral_temperature
        self._answer: list[int] = []

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

    def advance(self, ids: Tensor, keep: int) -> Tensor:
        """See `kad.method.scorer.Scorer`. In the place of what is left of the callers' prompt it reads its own."""
        unread = self._prompt[self.scorer.processed :]
        new = ids[max(self._shared - self.processed, 0) :] if unread else ids
        own = torch.cat((torch.tensor(unread, dtype=ids.dtype, device=ids.device), new))
        rows = self.scorer.advance(own, keep)
        if self._never is None:
            return rows
        self._answer += new.tolist()
        ends = range(len(self._answer) - keep + 1, len(self._answer) + 1)
        never = torch.stack([self._never(self._answer[:end]) for end in ends])
        return never_kept(rows, never.to(rows.device), self._temperature)

    def rollback(self, length: int) -> None:
        """See `kad.method.scorer.Scorer`."""
        kept = max(length - self._shared, 0)
        self.scorer.rollback(len(self._prompt) + kept - (length < self._shared))
        del self._answer[kept:]

    def release(self) -> None:
        """See `kad.method.scorer.Scorer`."""
        self.scorer.release()

    def has_read(self, ids: Sequence[int]) -> list[int]:
        """The tokens that the model has read, given those of the callers' prompt and of the answer."""
        return [*self._prompt, *ids[self._shared :]][: self.scorer.processed]

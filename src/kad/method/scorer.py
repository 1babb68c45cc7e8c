"""The interface between the loop and a model: read tokens, return logits, drop tokens. Each model has one scorer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from kad.method.distribution import Rows


class Scorer(Protocol):
    """One model with its cache. It reads tokens, returns logits, and can drop tokens again."""

    @property
    def processed(self) -> int:
        """How many tokens its cache holds."""

    @property
    def reversible(self) -> bool:
        """Whether it can go back to any earlier length. If not, it can still drop the drafts of one window."""

    def advance(self, ids: Tensor, keep: int) -> Rows:
        """Read ids (n,), which follow the `processed` ones. Returns logits (keep, vocab) at the last `keep` ids.

        Those of the base model may be `RowsWithRest`.
        """

    def rollback(self, length: int) -> None:
        """Drop all tokens but the first `length`. A `length` that is not reached yet changes nothing.

        It may drop more than that (see `kad.method.replay`), so read on from `processed`.
        """

    def release(self) -> None:
        """Called at the end of a generation. Puts the cache back into its ordinary state."""

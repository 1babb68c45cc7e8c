"""A way back for models whose state cannot drop tokens, such as recurrent ones: snapshots, and reading again."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

from kad.errors import UsageError
from kad.words import counted

if TYPE_CHECKING:
    from torch import Tensor

    from kad.method.distribution import Rows

# So many tokens are read together with those whose logits are asked for; more of them in a forward pass of their own,
# with a snapshot after it. Otherwise a prompt, or a row of windows with rejected drafts, would be read again and again.
TOGETHER = 16


class ForwardOnly(Protocol):
    """A model with its state. It reads tokens, and its state can be copied and put back. See `kad.method.scorer`."""

    @property
    def processed(self) -> int:
        """How many tokens its state holds."""

    def advance(self, ids: Tensor, keep: int) -> Rows:
        """Read ids (n,). Returns logits (keep, vocab) at the last `keep` ids."""

    def save(self) -> Any:
        """The present state, in a form that later tokens do not change."""

    def restore(self, saved: Any) -> None:
        """Go back to a saved state. It can be restored again."""

    def release(self) -> None:
        """See `Scorer.release`."""


class Replay:
    """A scorer that can go back, made of a model that cannot.

    It keeps a snapshot from before each forward pass. `rollback` restores the newest one that is short enough, so it
    may go back further than asked: whoever reads on reads the tokens between again, in the same pass as the new ones.
    Of old snapshots few stay: their number grows with the logarithm of the length, and to go back by n tokens, at most
    2n are read again.

    Args:
        model: the model. A prefix that it has read already stays.
    """

    reversible = True

    def __init__(self, model: ForwardOnly) -> None:
        self._model, self._first = model, model.processed
        self._saved: dict[int, Any] = {}  # snapshots by the number of tokens, which rises

    @property
    def processed(self) -> int:
        return self._model.processed

    def advance(self, ids: Tensor, keep: int) -> Rows:
        if len(ids) - keep > TOGETHER:
            self._read(ids[:-keep], 1)
            ids = ids[-keep:]
        return self._read(ids, keep)

    def rollback(self, length: int) -> None:
        if length >= self.processed:
            return
        self._saved = {at: saved for at, saved in self._saved.items() if at <= length}
        if not self._saved:
            raise UsageError(
                f"The cache that was given holds {counted(self._first, 'token')}, and its recurrent layers cannot go "
                f"back to {length}. Give a cache that has read less, or none."
            )
        self._model.restore(self._saved[max(self._saved)])

    def release(self) -> None:
        self._model.release()

    def _read(self, ids: Tensor, keep: int) -> Rows:
        if self.processed not in self._saved:
            self._saved[self.processed] = self._model.save()
        rows = self._model.advance(ids, keep)
        self._drop_old()
        return rows

    def _drop_old(self) -> None:
        """Drop each snapshot whose neighbours are close to each other, as seen from here."""
        older = self._first
        for at, newer in pairwise(list(self._saved)):
            if at != older and newer - older <= 2 * (self.processed - newer):
                del self._saved[at]
            else:
                older = at

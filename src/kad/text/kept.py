"""The scorers of finished answers: a prompt that begins with the same tokens reads only the rest."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from kad.engines.base import Scorer
    from kad.speculation.loop import SpeculativeLoop


class KeptScorers:
    """Scorers that have read a text, with the tokens of that text.

    Args:
        most: how many answers' scorers to keep. Each holds the caches of all models of its pair.
    """

    def __init__(self, most: int = 1) -> None:
        self._most = most
        self._kept: list[tuple[dict[str, Scorer], list[int]]] = []

    def take(self, prompt_ids: Sequence[int], roles: Collection[str]) -> dict[str, Scorer]:
        """The scorers of these roles that know most of a prompt, cut back to the tokens that it begins with.

        They are given away until `keep`: after a failed generation, their content would not be known. Empty if no
        token can be reused. The oldest ones then make room, before new caches grow.
        """
        fitting = [entry for entry in self._kept if set(entry[0]) == set(roles)]
        best = max(fitting, key=lambda entry: _shared(entry[1], prompt_ids), default=None)
        shared = 0 if best is None else _shared(best[1], prompt_ids)
        if best is None or shared == 0:
            del self._kept[: max(0, len(self._kept) + 1 - self._most)]
            return {}
        self._kept = [entry for entry in self._kept if entry is not best]
        for scorer in best[0].values():
            scorer.rollback(shared)
        return best[0]

    def keep(self, loop: SpeculativeLoop) -> None:
        """Keep the scorers of a loop that has ended, if they can roll back."""
        if all(scorer.reversible for scorer in loop.scorers.values()):
            with torch.no_grad():
                loop.bring_level()
            self._kept = [*self._kept, (dict(loop.scorers), loop.ids[: loop.length].tolist())][-self._most :]

    def forget(self) -> None:
        """Drop all of them."""
        self._kept = []


def _shared(read: Sequence[int], prompt_ids: Sequence[int]) -> int:
    """How many first tokens agree. The last one of the prompt does not count: its logits are needed, so it is read."""
    pairs = zip(read, prompt_ids[:-1], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

"""The scorers of finished answers: a prompt that begins with the same tokens reads only the rest."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import torch

from kad.engines.scorers import OwnPrompt, Restricted, Translated
from kad.text.contexts import Context

if TYPE_CHECKING:
    from kad.method.scorer import Scorer
    from kad.method.speculation.loop import SpeculativeLoop


@dataclass(frozen=True)
class _Read:
    """A scorer of an engine, and the tokens that its model has read."""

    scorer: Scorer
    ids: list[int]


class WarmScorers:
    """Scorers that have read a text, with the tokens of that text.

    Args:
        most: how many answers' scorers to keep. Each holds the caches of all models of its pair.
    """

    def __init__(self, most: int = 1) -> None:
        self._most = most
        self._kept: list[dict[str, _Read]] = []

    def take(self, prompt: Context | Sequence[int], roles: Collection[str]) -> dict[str, Scorer]:
        """The scorers of these roles that know most of a prompt, cut back to the tokens that it begins with.

        They are the engine's, and given away until `keep`: after a failed generation, their content would not be known.
        Empty if no token can be reused. The oldest ones then make room, before new caches grow.
        """
        context = Context.of(prompt)
        fitting = [entry for entry in self._kept if set(entry) == set(roles)]
        best = max(fitting, key=lambda entry: sum(_shared(entry, context).values()), default=None)
        shared = {} if best is None else _shared(best, context)
        if best is None or not any(shared.values()):
            del self._kept[: max(0, len(self._kept) + 1 - self._most)]
            return {}
        self._kept = [entry for entry in self._kept if entry is not best]
        for role, read in best.items():
            read.scorer.rollback(shared[role])
        return {role: read.scorer for role, read in best.items()}

    def keep(self, loop: SpeculativeLoop) -> None:
        """Keep the scorers of a loop that has ended, if they can roll back."""
        if all(scorer.reversible for scorer in loop.scorers.values()):
            with torch.no_grad():
                loop.bring_level()
            ids = loop.ids[: loop.length].tolist()
            self._kept = [*self._kept, {role: _read(scorer, ids) for role, scorer in loop.scorers.items()}][
                -self._most :
            ]

    def forget(self) -> None:
        """Drop all of them."""
        self._kept = []


def _read(scorer: Scorer, ids: list[int]) -> _Read:
    if isinstance(scorer, Restricted):
        scorer = scorer.scorer
    if isinstance(scorer, OwnPrompt | Translated):
        return _Read(scorer.scorer, scorer.has_read(ids))
    return _Read(scorer, ids)


def _shared(reads: Mapping[str, _Read], context: Context) -> dict[str, int]:
    """How many first tokens agree, for each model.

    The last one of the prompt does not count: its logits are needed, so it is read.
    """
    counts = {}
    for role, read in reads.items():
        wanted = context.base_ids if role == "base" and context.base_ids is not None else context.ids
        pairs = zip(read.ids, wanted[:-1], strict=False)
        counts[role] = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return counts

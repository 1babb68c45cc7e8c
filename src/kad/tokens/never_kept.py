"""The tokens that p never keeps: what it gives to them belongs to no token of q*, and is always deferred."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from kad.tokens.stops import Stops


@dataclass(frozen=True, eq=False)
class NeverKept:
    """The tokens that p never keeps.

    Attributes:
        foreign: (vocab,), bool: the tokens that mean something else to q*, see `kad.tokens.vocabulary.foreign_ids`.
        stops: the texts by which p's own prompt ends an answer. p keeps no token of them.
    """

    foreign: Tensor
    stops: Stops | None = None

    @classmethod
    def of(
        cls, foreign_ids: Sequence[int] | None, vocab_size: int, device: torch.device, stops: Stops | None = None
    ) -> NeverKept | None:
        """These tokens of a vocabulary. None if there are none, so that p may keep all."""
        if not foreign_ids and stops is None:
            return None
        return cls(foreign_tokens(foreign_ids or (), vocab_size, device), stops)

    def after(self, answer: Sequence[int]) -> Tensor:
        """(vocab,), bool, on the device of `foreign`: the tokens after an answer so far."""
        if self.stops is None:
            return self.foreign
        own = self.stops.after(answer).to(self.foreign.device)
        # Rows of logits may be longer: what is past the tokenizer stands for no token.
        return self.foreign | torch.nn.functional.pad(own, (0, len(self.foreign) - len(own)), value=True)


def foreign_tokens(ids: Sequence[int], vocab_size: int, device: torch.device) -> Tensor:
    """(vocab,), bool: these tokens."""
    return _marked(tuple(ids), vocab_size, device)


@lru_cache(maxsize=8)
def _marked(ids: tuple[int, ...], vocab_size: int, device: torch.device) -> Tensor:
    marks = torch.zeros(vocab_size, dtype=torch.bool)
    marks[list(ids)] = True
    return marks.to(device)

"""One prompt through one model of an engine that gives scorers, token by token."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from kad.engines.protocols import Model


class Alone:
    """A batch of one, with the methods of `kad.engines.transformers.lockstep.Lockstep`.

    Args:
        model: a single model.
        prompt: token ids, at least one.
        pad: the token that fills finished texts.

    Attributes:
        ids: (1, positions), the prompt and the new tokens.
        width: the number of tokens of the prompt.
        room: the number of positions after the prompt.
    """

    def __init__(self, model: Model, prompt: Sequence[int], pad: int) -> None:
        self.pad, self.width = pad, len(prompt)
        self.ids = torch.tensor([list(prompt)])
        limit = model.facts.context_length
        self.room = sys.maxsize if limit is None else limit - self.width
        self._scorer = model.scorer(model.vocab_size, self.ids.device, rollback=False)

    def next_logits(self) -> Tensor:
        """(1, vocab), the logits of the token that follows."""
        return cast("Tensor", self._scorer.advance(self.ids[0, self._scorer.processed :], 1)).float()

    def append(self, tokens: Tensor) -> None:
        """Add one token (1,)."""
        self.ids = torch.cat([self.ids, tokens.unsqueeze(-1)], dim=-1)

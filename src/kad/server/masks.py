"""Penalties and biases of the OpenAI API, as a mask on log pi (see `kad.text.masks`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Penalties:
    """What is added to the score of a token v that occurs c times in the answer so far:
    bias[v] - frequency * c - presence * [c > 0]. This is the definition of the OpenAI API, with log pi as the scores.

    Attributes:
        frequency: what each occurrence costs.
        presence: what having occurred costs.
        bias: a number for some tokens.
    """

    frequency: float = 0.0
    presence: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.frequency or self.presence or self.bias)

    def mask(self, prompt_tokens: int, ids: Tensor, scores: Tensor) -> Tensor:
        """The scores (1, vocab) after ids (1, length), whose answer begins after the prompt.

        With the length of the prompt given, this is a `kad.text.masks.Mask`.
        """
        counts = torch.bincount(ids[0, prompt_tokens:], minlength=scores.shape[-1])
        changed = scores - self.frequency * counts - self.presence * (counts > 0)
        if self.bias:
            tokens = torch.tensor(list(self.bias), device=scores.device)
            changed[0, tokens] += torch.tensor(list(self.bias.values()), dtype=scores.dtype, device=scores.device)
        return changed

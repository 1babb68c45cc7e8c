"""A batch of prompts through one Transformers model, padded on the left, token by token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from kad.engines.forward import run_part


class Lockstep:
    """A batch that is generated step by step: `next_logits`, then `append` the chosen tokens, and so on.

    Args:
        model: a pair or a single model.
        prompts: token ids, at least one each.
        pad: the token that fills short prompts and finished texts.

    Attributes:
        ids: (batch, positions), prompts and new tokens.
        width: the number of positions of the padded prompts.
    """

    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], pad: int) -> None:
        self.width = max(map(len, prompts))
        self.pad = pad
        device = model.device
        filled = [[pad] * (self.width - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (self.width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        self.ids, self._mask = torch.tensor(filled, device=device), torch.tensor(mask, device=device)
        self._model, self._read = model, 0
        make_cache: Any = getattr(model, "make_cache", None)  # a pair's cache is one for each of its models
        self._cache = DynamicCache(config=model.config) if make_cache is None else make_cache()

    def next_logits(self) -> Tensor:
        """(batch, vocab), the logits of the token that follows each row."""
        positions = (self._mask.cumsum(dim=-1) - 1).clamp(min=0)
        logits = run_part(
            self._model,
            self.ids[:, self._read :],
            self._cache,
            attention_mask=self._mask,
            position_ids=positions[:, self._read :],
            logits_to_keep=1,
        )
        self._read = self.ids.shape[1]
        return logits[:, -1].float()

    def append(self, tokens: Tensor) -> None:
        """Add one token (batch,) to each row."""
        self.ids = torch.cat([self.ids, tokens.unsqueeze(-1)], dim=-1)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=-1)

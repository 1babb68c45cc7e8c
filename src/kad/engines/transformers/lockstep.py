"""Many prompts through one Transformers model, padded on the left, one token of each row at a time."""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from kad.engines.transformers.forward import run_part
from kad.tokens.vocabulary import trim


class Lockstep:
    """See `kad.engines.protocols.Batch`.

    Args:
        model: the model.
        prompts: token ids, at least one each.
        vocab_size: the size of the common vocabulary. Later rows are cut off.
        pad: the token that fills short prompts.
    """

    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], vocab_size: int, pad: int) -> None:
        width = max(map(len, prompts))
        filled = [[pad] * (width - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        self._model, self._vocab = model, vocab_size
        self.room = sys.maxsize  # which Transformers does not limit
        self.ids, self._mask = torch.tensor(filled, device=model.device), torch.tensor(mask, device=model.device)
        self._cache = DynamicCache(config=model.config)

    def advance(self, tokens: Tensor | None = None) -> Tensor:
        """See `kad.engines.protocols.Batch`."""
        ids = self.ids if tokens is None else tokens.to(self.ids.device).unsqueeze(-1)
        if tokens is not None:
            self._mask = torch.cat((self._mask, self._mask.new_ones(ids.shape)), dim=-1)
        positions = (self._mask.cumsum(dim=-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        logits = run_part(
            self._model, ids, self._cache, attention_mask=self._mask, position_ids=positions, logits_to_keep=1
        )
        return trim(logits[:, -1], self._vocab)

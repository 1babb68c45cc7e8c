"""A batch of prompts through one Transformers model, padded on the left, token by token."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from kad.engines.transformers.forward import run_part


class Lockstep:
    """A batch that is generated step by step: `next_logits`, then `append` the chosen tokens, and so on.

    Args:
        model: a pair or a single model.
        prompts: token ids, at least one each.
        pad: the token that fills short prompts and finished texts.
        base_prompts: the prompts of a pair's base model, if it has some of its own.
        never: given the answer of a row, the tokens (vocab,) that the base model never keeps there.

    Attributes:
        ids: (batch, positions), prompts and new tokens.
        width: the number of positions of the padded prompts.
        room: the number of positions after the prompts, which Transformers does not limit.
    """

    room = sys.maxsize

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: list[list[int]],
        pad: int,
        base_prompts: list[list[int]] | None = None,
        never: Callable[[Sequence[int]], Tensor] | None = None,
    ) -> None:
        self.pad = pad
        self.ids, self._mask = _padded(prompts, pad, model.device)
        self.width = self.ids.shape[1]
        self._base = None if base_prompts is None else _padded(base_prompts, pad, model.device)
        self._never = never
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
            **self._own_inputs(),
        )
        self._read = self.ids.shape[1]
        return logits[:, -1].float()

    def _own_inputs(self) -> dict[str, Tensor]:
        """What the base model reads, if it has prompts of its own, and what it never keeps."""
        inputs = {}
        if self._base is not None:
            answers = self.ids[:, self.width :]
            ids, mask = self._base
            inputs["base_input_ids"] = torch.cat((ids, answers), dim=-1)
            inputs["base_attention_mask"] = torch.cat((mask, mask.new_ones(answers.shape)), dim=-1)
            if self._never is not None:
                rows = torch.stack([self._never(answer) for answer in answers.tolist()])
                inputs["never_kept_tokens"] = rows.unsqueeze(1).to(ids.device)
        return inputs

    def append(self, tokens: Tensor) -> None:
        """Add one token (batch,) to each row."""
        self.ids = torch.cat([self.ids, tokens.unsqueeze(-1)], dim=-1)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=-1)


def _padded(prompts: list[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The prompts with padding on the left, and the attention mask, both (batch, longest)."""
    width = max(map(len, prompts))
    filled = [[pad] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(filled, device=device), torch.tensor(mask, device=device)

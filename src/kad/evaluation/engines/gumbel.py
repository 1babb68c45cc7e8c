"""Sampling with a random generator for each row of a batch (Gumbel-max)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor


class GumbelSampling(LogitsProcessor):
    """Turns greedy search into exact sampling at a temperature, each row with its own seed.

    argmax_v (log pi_v / T + g_v) with independent standard Gumbel g is distributed as softmax(log pi / T).
    Row i draws its g from its own generator. So its text depends on its seed and its prompt only, and not on the other
    rows of the batch or on earlier batches. This is why an interrupted run can continue.

    The noise is float64. In float32 the tail of g would end at 16.6, and a token rarer than 2^-24 could never win.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, device: torch.device) -> None:
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, but is {temperature}; greedy search needs no noise")
        self._temperature = temperature
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(batch, vocab) log-probabilities or logits -> the same with noise, float64."""
        return scores.double() / self._temperature + self._noise(scores)

    def _noise(self, scores: Tensor) -> Tensor:
        rows = [
            torch.rand(scores.shape[-1], generator=generator, dtype=torch.float64, device=scores.device)
            for generator in self._generators
        ]
        # rand is in [0, 1). A zero, once in 2^53, gives -inf: this token cannot win this time.
        return -torch.log(-torch.log(torch.stack(rows)))

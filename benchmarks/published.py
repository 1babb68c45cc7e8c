"""The plain definition of the speculative loop, as a baseline: dense probabilities at every position, no bonus token.

Written anew from the algorithm (draft W tokens from q*; accept with min(1, pi/q*); on rejection draw from
norm(max(pi - q*, 0))); after a window that stood whole, nothing more is taken from the base model's last row.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache

import kad
from kad.engines.transformers.host import CACHE


@torch.no_grad()
def published(model: kad.KadForCausalLM, ids: Tensor, new_tokens: int, window: int) -> Tensor:
    """Sample `new_tokens` tokens after ids (1, n)."""
    base, aligned = DynamicCache(config=model.base.config), DynamicCache(config=model.aligned.config)
    end = ids.shape[1] + new_tokens
    while ids.shape[1] < end:
        size = min(window, end - ids.shape[1])
        drafted, q = _draft(model, ids, aligned, size)
        rows = model.base(drafted[:, base.get_seq_length() :], **{CACHE: base}).logits[0, -size - 1 : -1]
        pi = kad.compose(model.rule, rows, q.log()).exp()
        ids = _verify(ids, drafted, pi, q)
        for cache in (base, aligned):
            cache.crop(-max(cache.get_seq_length() - ids.shape[1] + 1, 0))
    return ids


def _draft(model: kad.KadForCausalLM, ids: Tensor, cache: DynamicCache, size: int) -> tuple[Tensor, Tensor]:
    rows = []
    for _ in range(size):
        logits = model.aligned(ids[:, cache.get_seq_length() :], **{CACHE: cache}).logits[0, -1]
        rows.append(torch.softmax(logits, dim=-1))
        ids = torch.cat([ids, torch.multinomial(rows[-1], 1)[None]], dim=1)
    return ids, torch.stack(rows)


def _verify(ids: Tensor, drafted: Tensor, pi: Tensor, q: Tensor) -> Tensor:
    tokens = drafted[0, ids.shape[1] :]
    for i, token in enumerate(tokens):
        if torch.rand(()) >= pi[i, token] / q[i, token]:
            residual = torch.clamp(pi[i] - q[i], min=0)
            correction = torch.multinomial(residual / residual.sum(), 1)
            return torch.cat([ids, tokens[None, :i], correction[None]], dim=1)
    return drafted

"""The models' logits over a finished text: one forward pass of each, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from kad.modeling import KadForCausalLM

# Logits of one model that exist at once: 32 MB in float32.
LOGITS_AT_ONCE = 8_000_000


@dataclass(frozen=True)
class Chunk:
    """Some consecutive tokens of an answer, and the logits that each model had for them.

    Attributes:
        tokens: (n,), the emitted tokens.
        logits: role -> (n, vocab), on the CPU in float32.
    """

    tokens: Tensor
    logits: dict[str, Tensor]


@torch.inference_mode()
def score(
    model: KadForCausalLM,
    prompt_ids: Sequence[int],
    output_ids: Sequence[int],
    others: Mapping[str, Any] | None = None,
) -> Iterator[Chunk]:
    """The logits of a pair's models at every token of an answer.

    Args:
        model: the composed model; its reference model runs too if it has one.
        prompt_ids, output_ids: the tokens before the answer, and the answer's; at least one each.
        others: further models to score the same text with, by name.
    """
    from transformers import DynamicCache

    from kad.parts import run_part
    from kad.vocabulary import trim

    parts = {**model.parts, **(others or {})}
    caches = {role: DynamicCache(config=part.config) for role, part in parts.items()}
    ids = torch.tensor([[*prompt_ids, *output_ids]])
    vocab, first, last = int(model.config.vocab_size), len(prompt_ids) - 1, ids.shape[1] - 1
    chunk = max(1, LOGITS_AT_ONCE // vocab)
    start = 0
    for end in (*range(first + chunk, last, chunk), last):
        begin = max(start, first)
        logits = {}
        for role, part in parts.items():
            rows = run_part(part, ids[:, start:end], caches[role], logits_to_keep=end - begin)
            logits[role] = trim(rows, vocab)[0].float().cpu()
        yield Chunk(ids[0, begin + 1 : end + 1], logits)
        start = end

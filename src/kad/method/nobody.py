"""Mass of p that belongs to no token, as one more entry of its rows: a cascade always defers it."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from kad.method.distribution import raised
from kad.method.rules.rule import EXCLUDED


def never_kept(base_logits: Tensor, tokens: Tensor, deferral_temperature: float = 1.0) -> Tensor:
    """Rows of p in which the mass of some tokens belongs to nobody, for `Composition(..., nobody=True)`.

    Args:
        base_logits: (..., vocab), the base model's logits.
        tokens: (..., vocab) or (vocab,), bool: the tokens that must never be kept. Rows of logits may be longer: what
            is past the tokenizer stands for no token.
        deferral_temperature: that of the composition, so that each token has its share at that temperature.

    Returns:
        (..., vocab + 1), logits. The tokens themselves stand 10,000 below: their probability is zero.
    """
    tokens = torch.nn.functional.pad(tokens, (0, base_logits.shape[-1] - tokens.shape[-1]), value=True)
    log_p = (raised(base_logits, "base_logits") / deferral_temperature).log_softmax(dim=-1)
    rest = log_p.masked_fill(~tokens, EXCLUDED).logsumexp(dim=-1, keepdim=True)
    return deferral_temperature * torch.cat((torch.where(tokens, log_p + EXCLUDED, log_p), rest), dim=-1)


def without_foreign(
    base_logits: Tensor, vocab: int, foreign: tuple[int, ...], deferral_temperature: float = 1.0
) -> Tensor:
    """Rows of p in which the mass of foreign tokens belongs to nobody; the rows themselves where there are none.

    Args:
        base_logits: (..., vocab), or (..., vocab + 1) where the last entry is nobody's already.
        vocab: the number of tokens.
        foreign: the ids of the foreign tokens.
        deferral_temperature: see `never_kept`.
    """
    if not foreign:
        return base_logits
    rows = never_kept(base_logits, _marked(foreign, vocab, base_logits.device), deferral_temperature)
    # What was nobody's before is in the new last entry too.
    return torch.cat((rows[..., :vocab], rows[..., -1:]), dim=-1) if base_logits.shape[-1] > vocab else rows


@lru_cache(maxsize=8)
def _marked(tokens: tuple[int, ...], vocab: int, device: torch.device) -> Tensor:
    marks = torch.zeros(vocab, dtype=torch.bool)
    marks[list(tokens)] = True
    return marks.to(device)

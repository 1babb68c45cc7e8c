"""Whether sampled text follows pi: the probability integral transform, and its test.

Token x_i, given what precedes it, is turned into u_i = P(key > key(x_i)) + U P(key = key(x_i)) under pi, with any key
and uniform U. The u_i are independent and uniform if and only if each token follows pi given its prefix, however long
the text. The key is pi/q*, along which a broken loop leans. False alarms: one in a million runs, by the
Kolmogorov-Smirnov test.
"""

from __future__ import annotations

from typing import Any

import torch
from scipy.stats import kstest

import kad

FALSE_ALARM = 1e-6


def p_value(
    model: kad.KadForCausalLM, ids: torch.Tensor, *, tokens: int, texts: int = 1, warp: float = 1.0, **options: Any
) -> float:
    """The Kolmogorov-Smirnov p-value of `texts` sampled texts."""
    uniforms: list[float] = []
    # One for all texts: where pi is sure of a token, u_i is the tie's draw alone, and a repeated draw is no new one.
    ties = torch.Generator().manual_seed(7)
    for seed in range(texts):
        torch.manual_seed(seed)
        text = model.generate(
            ids, custom_generate=kad.speculative, do_sample=True, temperature=warp, top_k=0, top_p=1.0,
            max_new_tokens=tokens, eos_token_id=None, pad_token_id=0, **options,
        )  # fmt: skip
        uniforms += transform(model, text, ids.shape[1], warp, ties)
    return float(kstest(uniforms, "uniform").pvalue)


@torch.no_grad()
def transform(
    model: kad.KadForCausalLM, text: torch.Tensor, start: int, temperature: float, ties: torch.Generator
) -> list[float]:
    """The u_i of the tokens from `start` on."""
    span = slice(start - 1, -1)
    log_pi = torch.log_softmax(model(text).logits[0, span].double() / temperature, dim=-1)
    log_q = torch.log_softmax(model.aligned(text).logits[0, span].double(), dim=-1)
    key, pi = log_pi - log_q[:, : log_pi.shape[-1]], log_pi.exp()
    mine = key.gather(-1, text[0, start:].unsqueeze(-1))
    above, tied = (pi * (key > mine)).sum(-1), (pi * (key == mine)).sum(-1)
    return (above.cpu() + torch.rand(len(above), generator=ties, dtype=torch.float64) * tied.cpu()).tolist()

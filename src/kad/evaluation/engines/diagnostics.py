"""Deferred mass and expected acceptance along a finished text, from one forward pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kad.composition import acceptance, deferred_mass
from kad.engines.forward import run_part
from kad.modeling import KadForCausalLM
from kad.rules import CascadeRule
from kad.vocabulary import trim

# How many positions are composed at once. (64, vocab) in float32 has about 40 MB at 150,000 tokens.
_POSITIONS = 64


class Diagnosis(NamedTuple):
    """Means over a text's positions; the deferred mass of a product is None."""

    deferred_mass: float | None
    acceptance: float


def diagnose(model: KadForCausalLM, prompt: Tensor, tokens: Tensor) -> Diagnosis:
    """Means over the generated positions of alpha (cascades only) and of beta = sum_v min(pi_v, q*_v).

    Args:
        model: the composed model.
        prompt: (prompt positions,) token ids.
        tokens: (new positions,) token ids that were generated behind it.
    """
    ids = torch.cat([prompt, tokens.to(prompt.device)]).unsqueeze(0)
    # The last token's own logits predict what was never drawn.
    logits = {
        role: trim(run_part(part, ids, logits_to_keep=len(tokens) + 1)[0, :-1], model.config.vocab_size)
        for role, part in model.parts.items()
        if role != "reference" or model.rule.needs_reference
    }
    alphas, betas = [], []
    temperature = model.composition.deferral_temperature
    for start in range(0, len(tokens), _POSITIONS):
        rows = {role: row[start : start + _POSITIONS].float() / temperature for role, row in logits.items()}
        device = rows["base"].device
        base, aligned = rows["base"], rows["aligned"].to(device)
        reference = rows["reference"].to(device) if "reference" in rows else None
        betas.append(acceptance(model.rule, base, aligned, reference))
        if isinstance(model.rule, CascadeRule):
            alphas.append(deferred_mass(model.rule, base, aligned))
    return Diagnosis(
        deferred_mass=float(torch.cat(alphas).mean()) if alphas else None,
        acceptance=float(torch.cat(betas).mean()),
    )

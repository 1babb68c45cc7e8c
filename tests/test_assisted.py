"""Transformers' own assisted generation with the aligned model as assistant follows pi: a statistical test."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

import kad
from conftest import make_model

pytestmark = pytest.mark.core

RUNS = 1200
FALSE_ALARM = 1e-6


def p_value(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """Of Pearson's test; cells with fewer than five expected outcomes are one cell."""
    expected = probabilities.double() / probabilities.double().sum() * counts.sum()
    large = expected >= 5
    observed = [*counts[large].tolist(), int(counts[~large].sum())]
    wanted = [*expected[large].tolist(), max(float(expected[~large].sum()), 1e-9)]
    return float(chisquare(observed, wanted).pvalue)


def two_tokens(model: torch.nn.Module, prompt: torch.Tensor) -> torch.Tensor:
    """(vocab * vocab,), the exact probability of every continuation of two tokens."""
    with torch.no_grad():
        first = model(prompt).logits[0, -1].log_softmax(-1)
        vocab = first.shape[0]
        continued = torch.cat([prompt.expand(vocab, -1), torch.arange(vocab)[:, None]], dim=1)
        second = model(continued).logits[:, -1].log_softmax(-1)
    return (first[:, None] + second).exp().flatten()


@pytest.mark.slow
def test_assisted_sampling_follows_pi() -> None:
    base, aligned = (make_model(seed, vocab=8, sharpness=2.0) for seed in (0, 1))
    model = kad.KadForCausalLM.from_models(base, aligned, rule="dual:threshold=0.3")
    prompt, counts = torch.tensor([[3, 4, 5]]), torch.zeros(64)
    torch.manual_seed(0)
    for _ in range(RUNS):
        text = model.generate(
            prompt, assistant_model=aligned, do_sample=True, top_k=0, max_new_tokens=2, eos_token_id=None
        )
        counts[int(text[0, 3]) * 8 + int(text[0, 4])] += 1
    assert p_value(counts, two_tokens(model, prompt)) > FALSE_ALARM
    # The test has the power to tell: neither model alone could have written this.
    assert p_value(counts, two_tokens(base, prompt)) < FALSE_ALARM
    assert p_value(counts, two_tokens(aligned, prompt)) < FALSE_ALARM

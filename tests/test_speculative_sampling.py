"""Sampled text follows pi, on real models and through `generate`; and the test sees a loop that is broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicLayer

import kad
from conftest import make_model
from kad.engines.transformers import speculative as speculation
from kad.method.verification import Target, verify_block, verify_tokens
from uniforms import FALSE_ALARM, p_value

PROMPT = "Mia has 24 apples. She buys 13 more. How many apples does she have now?"


@pytest.fixture(scope="module")
def ids(tiny: kad.KadForCausalLM) -> torch.Tensor:
    """A prompt without the chat template, where base and aligned model part ways."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(kad.tiny.path("pair"))(PROMPT, return_tensors="pt")["input_ids"]


RULES = {"dual:threshold=0.4": 1.0, "confidence_bet": 1.0, "implicit_reward": 1.0, "primal": 0.7}


@pytest.mark.parametrize("verification", ["block", "token"])
@pytest.mark.parametrize("rule", RULES)
def test_the_tiny_family_follows_pi(tiny: kad.KadForCausalLM, ids: torch.Tensor, rule: str, verification: str) -> None:
    with tiny.using(rule):
        p = p_value(tiny, ids, tokens=150, texts=2, warp=RULES[rule], num_draft_tokens=4, verification=verification)
    assert p > FALSE_ALARM


@pytest.fixture(scope="module")
def parted() -> kad.KadForCausalLM:
    """p diffuse and q* surer of something else: drafts are often rejected, so that a broken loop soon shows.

    Trained models agree too well for that: with the tiny family it takes far more text.
    """
    base = make_model(0, hidden=48, layers=3, sharpness=2.0)
    return kad.KadForCausalLM.from_models(base, make_model(1, sharpness=3.0), rule="base_only")


def p_value_of_much_text(parted: kad.KadForCausalLM, prompt: Callable[..., torch.Tensor]) -> float:
    """As much text as it takes to see each of the broken loops below, with room to spare."""
    return p_value(parted, prompt(12), tokens=150, texts=24, num_draft_tokens=3, verification="token")


@pytest.mark.slow
def test_the_loop_as_it_is_passes_where_the_broken_ones_fail(
    parted: kad.KadForCausalLM, prompt: Callable[..., torch.Tensor]
) -> None:
    assert p_value_of_much_text(parted, prompt) > FALSE_ALARM


@pytest.mark.slow
def test_dropping_the_residual_is_seen(
    parted: kad.KadForCausalLM, prompt: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    follow = Target.follow

    def pi_itself(self: Target, accepted: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        weights = follow(self, accepted, scale)
        stands = int(accepted) == self.drafts.shape[0]
        return weights if stands else torch.cat((self.kept[int(accepted)], weights[-1:]))

    monkeypatch.setattr(Target, "follow", pi_itself)
    assert p_value_of_much_text(parted, prompt) < FALSE_ALARM


@pytest.mark.slow
def test_accepting_one_too_many_is_seen(
    parted: kad.KadForCausalLM, prompt: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def generous(target: Target, randomness: Any) -> tuple[torch.Tensor, torch.Tensor]:
        accepted, scale = verify_tokens(target, randomness)
        return (accepted + 1).clamp(max=len(target.ratio)), scale

    monkeypatch.setitem(speculation.VERIFIERS, "token", generous)
    assert p_value_of_much_text(parted, prompt) < FALSE_ALARM


@pytest.mark.slow
def test_forgetting_to_crop_is_seen(
    parted: kad.KadForCausalLM, prompt: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DynamicLayer, "crop", lambda self, tokens_to_remove: None)
    assert p_value_of_much_text(parted, prompt) < FALSE_ALARM


# ---------------------------------------------------------------- bfloat16


def test_in_bfloat16_greedy_text_differs_at_near_ties_only(ids: torch.Tensor) -> None:
    """Forwards of different lengths round differently. Where the texts part, each of the two tokens is all but pi's
    first choice, or would be with the threshold a tenth off: a p beside the threshold is a tie too."""
    model = kad.tiny.pair()
    assert model.base.dtype == torch.bfloat16
    options = {"do_sample": False, "max_new_tokens": 120, "eos_token_id": None, "pad_token_id": 0}
    plain = model.generate(ids, **options)[0]
    for window in (2, 5, 8):
        fast = model.generate(ids, custom_generate=kad.speculative, num_draft_tokens=window, **options)[0]
        parted = (plain != fast).nonzero()
        if len(parted):
            at = int(parted[0])
            lag = torch.stack([distance_from_first(model, plain[:at], t) for t in (0.36, 0.4, 0.44)]).amin(dim=0)
            assert max(lag[plain[at]], lag[fast[at]]) < 0.1


@torch.no_grad()
def distance_from_first(model: kad.KadForCausalLM, prefix: torch.Tensor, threshold: float) -> torch.Tensor:
    """(vocab,), by how much log pi of each next token falls short of the largest under the dual rule."""
    with model.using(f"dual:threshold={threshold}"):
        log_pi = model(prefix.unsqueeze(0)).logits[0, -1]
    return log_pi.max() - log_pi


def test_the_verifiers_of_the_public_call() -> None:
    assert {"block": verify_block, "token": verify_tokens} == speculation.VERIFIERS

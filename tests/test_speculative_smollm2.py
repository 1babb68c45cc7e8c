"""The speculative loop on real weights and a real vocabulary."""

from __future__ import annotations

import pytest
from benchmarks import smollm2
from transformers import AutoTokenizer

import kad
import needs
from uniforms import FALSE_ALARM, p_value


@pytest.mark.integration
@pytest.mark.slow
@needs.smollm2
def test_smollm2_follows_pi_and_greedy_text_does_not_change() -> None:
    model = kad.KadForCausalLM.from_models(str(smollm2.perturbed()), str(smollm2.aligned()), dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(smollm2.aligned())
    ids = tokenizer("The three most common causes of", return_tensors="pt")["input_ids"]
    assert p_value(model, ids, tokens=120, num_draft_tokens=4) > FALSE_ALARM
    assert p_value(model, ids, tokens=60, num_draft_tokens=4, warp=0.7) > FALSE_ALARM
    greedy = {"do_sample": False, "max_new_tokens": 40, "pad_token_id": 0}
    fast = model.generate(ids, custom_generate=kad.speculative, num_draft_tokens=5, **greedy)
    assert fast.tolist() == model.generate(ids, **greedy).tolist()

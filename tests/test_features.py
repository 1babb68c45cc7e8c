"""Every rule with every way in which Transformers decodes: each text is the one that the definition of pi gives.

The marks become docs/support.md; see make/support.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TextStreamer

import kad
from conftest import make_tokenizer
from kad.rules import registry

Prompt = Callable[..., torch.Tensor]
LENGTH, NEW = 6, 8
EXACT = {"atol": 2e-5, "rtol": 1e-5}

# A way of decoding never asks for a rule's name: one rule of each family shows it, and the others are slow tests.
FAMILIES = ("dual", "nudging", "implicit_reward")
pytestmark = pytest.mark.parametrize(
    "rule", [rule if rule in FAMILIES else pytest.param(rule, marks=pytest.mark.slow) for rule in registry()]
)


def log_pi(model: kad.KadForCausalLM, text: torch.Tensor, rule: str) -> torch.Tensor:
    """The definition, (new tokens, vocabulary): each model on the finished text (1, positions), then composed."""
    with torch.no_grad():
        logits = [part(text, use_cache=False).logits for part in (model.base, model.aligned, model.reference)]
    return kad.compose(rule, *logits)[0, LENGTH - 1 : -1]


def generate(model: kad.KadForCausalLM, ids: torch.Tensor, rule: str, **options: Any) -> Any:
    return model.generate(
        ids, rule=rule, **({"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None} | options)
    )


@pytest.mark.supports("Transformers", "greedy")
def test_greedy(rule: str, model: kad.KadForCausalLM, prompt: Prompt) -> None:
    text = generate(model, prompt(LENGTH), rule)
    assert text[0, LENGTH:].tolist() == log_pi(model, text, rule).argmax(-1).tolist()


@pytest.mark.supports("Transformers", "sampling")
def test_sampling_draws_from_warped_log_pi(rule: str, model: kad.KadForCausalLM, prompt: Prompt) -> None:
    torch.manual_seed(0)
    settings = {"do_sample": True, "temperature": 0.8, "top_k": 0, "top_p": 1.0}
    output = generate(model, prompt(LENGTH), rule, output_scores=True, return_dict_in_generate=True, **settings)
    expected, found = log_pi(model, output.sequences, rule) / 0.8, torch.cat(output.scores)
    torch.testing.assert_close(found, expected, **EXACT)
    drawn = expected.gather(-1, output.sequences[0, LENGTH:, None])
    assert bool((drawn > -torch.inf).all())


@pytest.mark.supports("Transformers", "batch")
def test_a_padded_batch_is_each_prompt_alone(rule: str, model: kad.KadForCausalLM, prompt: Prompt) -> None:
    rows = [prompt(length, seed=length)[0] for length in (3, LENGTH)]
    padded = make_tokenizer().pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
    together = generate(model, padded["input_ids"], rule, attention_mask=padded["attention_mask"])
    for row, text in zip(rows, together, strict=True):
        assert text[LENGTH:].tolist() == generate(model, row[None], rule)[0, len(row) :].tolist()


@pytest.mark.supports("Transformers", "beam search")
def test_a_beams_score_is_log_pi_of_its_text(rule: str, model: kad.KadForCausalLM, prompt: Prompt) -> None:
    settings = {"num_beams": 3, "length_penalty": 0.0, "output_scores": True, "return_dict_in_generate": True}
    output = generate(model, prompt(LENGTH), rule, **settings)
    rows = log_pi(model, output.sequences, rule)
    total = rows.gather(-1, output.sequences[0, LENGTH:, None]).sum()
    torch.testing.assert_close(output.sequences_scores[0], total, atol=2e-4, rtol=1e-4)


@pytest.mark.supports("Transformers", "assisted")
def test_assisted_generation_changes_no_greedy_text(rule: str, model: kad.KadForCausalLM, prompt: Prompt) -> None:
    assisted = generate(model, prompt(LENGTH), rule, assistant_model=model.aligned)
    assert assisted.tolist() == generate(model, prompt(LENGTH), rule).tolist()


@pytest.mark.supports("Transformers", "speculative")
def test_speculation_changes_no_greedy_text(rule: str, model: kad.KadForCausalLM, prompt: Prompt) -> None:
    fast = generate(model, prompt(LENGTH), rule, custom_generate=kad.speculative, num_draft_tokens=3)
    assert fast.tolist() == generate(model, prompt(LENGTH), rule).tolist()


@pytest.mark.supports("Transformers", "streaming")
def test_a_streamer_gets_the_text(
    rule: str, model: kad.KadForCausalLM, prompt: Prompt, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = make_tokenizer()
    text = generate(model, prompt(LENGTH), rule, streamer=TextStreamer(tokenizer, skip_prompt=True))
    assert capsys.readouterr().out.rstrip("\n") == tokenizer.decode(text[0, LENGTH:]).rstrip("\n")


@pytest.mark.supports("Transformers", "save and load")
def test_a_saved_pair_is_the_same_model(rule: str, folders: dict[str, Path], tmp_path: Path, prompt: Prompt) -> None:
    model = kad.KadForCausalLM.from_models(**folders, rule=rule)
    model.save_pretrained(tmp_path)
    loaded = kad.KadForCausalLM.from_pretrained(tmp_path)
    assert str(loaded.rule) == str(kad.parse_rule(rule))
    with torch.no_grad():
        assert torch.equal(loaded(prompt(LENGTH)).logits, model(prompt(LENGTH)).logits)

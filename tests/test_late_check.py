"""A bad row on a GPU is an error in words, and nothing waits for it. On a CPU the code is told that it may not look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import kad
from kad.engines.transformers import late_check
from kad.errors import LogitsError
from kad.method import composition


@pytest.fixture
def unseen(models_: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> kad.KadForCausalLM:
    """A pair whose base model gives NaN after the third pass, on a device whose values cost a wait."""
    for module in (composition, late_check):
        monkeypatch.setattr(module, "may_look", lambda rows: False)
    model = kad.KadForCausalLM.from_models(models_["base"], models_["aligned"])
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 2
    forward, passes = model.base.forward, [0]

    def broken(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        passes[0] += 1
        if passes[0] >= 3:
            output.logits[..., 5] = float("nan")
        return output

    monkeypatch.setattr(model.base, "forward", broken)
    return model


WORDS = r"base_logits of shape \(1, 1, \d+\): row 0 has NaN at token 5"


def test_the_next_pass_says_what_was_wrong(unseen: kad.KadForCausalLM, prompt: Callable[..., Any]) -> None:
    for _ in range(2):
        unseen(prompt(4), logits_to_keep=1)
    assert bool(unseen(prompt(4), logits_to_keep=1).logits.isnan().all())
    with pytest.raises(LogitsError, match=WORDS):
        unseen(prompt(4), logits_to_keep=1)


@pytest.mark.parametrize("new_tokens", [3, 6])
def test_generate_says_it_at_its_end_at_the_latest(
    unseen: kad.KadForCausalLM, prompt: Callable[..., Any], new_tokens: int
) -> None:
    with pytest.raises(LogitsError, match=WORDS):
        unseen.generate(prompt(4), max_new_tokens=new_tokens, do_sample=False)


def test_an_earlier_pass_is_not_the_error_of_a_generation(
    unseen: kad.KadForCausalLM, prompt: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        unseen(prompt(4), logits_to_keep=1)
    monkeypatch.undo()
    assert unseen.generate(prompt(4), max_new_tokens=2, do_sample=False).shape == (1, 6)

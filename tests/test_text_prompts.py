"""Text piece by piece as tokens arrive."""

from __future__ import annotations

import pytest

import kad
from cli_runs import make_tiny_tokenizer
from kad.errors import UsageError
from kad.text.prompts import Detokenizer, decode


@pytest.mark.parametrize(
    "text", ["24 + 13 = 37.\n", "naïve café", "漢字かな", "a 👩‍👩‍👧 b", "  two  spaces ", "é" * 40]
)
def test_pieces_add_up_to_the_text_and_hold_whole_characters(text: str) -> None:
    tokenizer = make_tiny_tokenizer()
    tokens = tokenizer(text).input_ids
    pieces = Detokenizer(tokenizer)
    shown = [pieces.push(token) for token in tokens] + [pieces.finish()]
    assert "".join(shown) == decode(tokenizer, tokens) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in shown)


def test_an_incomplete_character_comes_at_the_end() -> None:
    tokenizer = make_tiny_tokenizer()
    tokens = tokenizer("漢").input_ids[:-1]
    pieces = Detokenizer(tokenizer)
    assert "".join(pieces.push(token) for token in tokens) == ""
    assert pieces.finish() == "\N{REPLACEMENT CHARACTER}"


def test_a_token_that_a_model_does_not_have_is_refused() -> None:
    """Such as `<image_soft_token>`, which Gemma's tokenizer knows, and a model for text has no row for."""
    model = kad.load("tiny")
    model.tokenizer.add_tokens(["<image>"], special_tokens=True)
    beyond = "token '<image>' \\(768\\), and one of the models does not"
    with pytest.raises(UsageError, match=f"prompt has the {beyond}"):
        kad.generate(model, "What is <image>?")
    with pytest.raises(UsageError, match=f"text has the {beyond}"):
        kad.score(model, "What is it?", "It is <image>.")
    for token in (5000, -1):
        with pytest.raises(UsageError, match=f"has the token {token}, "):
            kad.generate(model, [3, token])
    assert kad.generate(model, "Ann has 5 pens.", sampling=kad.Sampling(max_new_tokens=1, temperature=0)).token_ids

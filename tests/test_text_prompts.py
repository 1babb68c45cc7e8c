"""Text piece by piece as tokens arrive."""

from __future__ import annotations

import pytest

from cli_runs import make_tiny_tokenizer
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

"""Text piece by piece as tokens arrive."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

import kad
from cli_runs import make_tiny_tokenizer
from kad.errors import UsageError
from kad.text.prompts import Detokenizer, decode, text_ids


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


def in_the_manner_of_sentencepiece() -> PreTrainedTokenizerFast:
    """A text of its own begins with a mark for a space, and "cd" and "\\n" are one token."""
    words = ["<unk>", "<s>", "▁", "a", "b", "c", "d", "▁a", "▁b", "cd", "\n"]
    merges = [("▁", "a"), ("▁", "b"), ("c", "d")]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, merges, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


@pytest.mark.parametrize(
    ("prompt", "text", "tokens"),
    [
        ("b", "a", ["a"]),  # and not "▁a", as on its own
        ("b", " a", ["▁a"]),
        ("b\n", "ab", ["a", "b"]),
        ("bc", "da", ["d", "a"]),  # "cd" would reach across the seam
    ],
)
def test_a_text_behind_a_prompt_has_the_tokens_that_it_has_there(prompt: str, text: str, tokens: list[str]) -> None:
    tokenizer = in_the_manner_of_sentencepiece()
    before = tokenizer(prompt).input_ids
    found = text_ids(tokenizer, text, before)
    assert tokenizer.convert_ids_to_tokens(found) == tokens
    assert decode(tokenizer, [*before, *found]) == prompt + text
    assert text_ids(tokenizer, found, before) == found


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

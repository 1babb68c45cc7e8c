"""Text piece by piece as tokens arrive."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import kad
from cli_runs import make_tiny_tokenizer
from conftest import make_tokenizer
from kad.errors import UsageError
from kad.text.prompts import Detokenizer, decode, encode, encode_plain, render, text_ids


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


def test_a_template_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kad.text.prompts.SECONDS", 0.2)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    began = time.perf_counter()
    with ThreadPoolExecutor(1) as thread:  # as in the server
        for render_it in (render, lambda *what: thread.submit(render, *what).result()):
            with pytest.raises(UsageError, match="chat template refuses this conversation: TimeoutError"):
                render_it(tokenizer, [{"role": "user", "content": "Hi"}])
    assert time.perf_counter() - began < 10
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert render(tokenizer, [{"role": "user", "content": "Hi"}]) == "Hi"
    time.sleep(0.3)  # what came in time is not ended afterwards


def test_a_tokenizer_that_gives_up_is_a_sentence() -> None:
    """Its regular expression tries 2^n ways."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+b"), "isolated")
    for encoded in (lambda text: encode(tokenizer, text, raw=True), lambda text: encode_plain(tokenizer, text)):
        with pytest.raises(UsageError, match="The tokenizer gives up on this text"):
            encoded("a" * 40)


def test_half_of_a_character_is_a_sentence() -> None:
    """JSON may write it, and a command line with another encoding makes it. No tokenizer reads it."""
    bad, model = "a\ud800", kad.load()
    for ask in (
        lambda: kad.generate(model, bad),
        lambda: kad.generate(model, "Hi", system=bad),
        lambda: kad.generate(model, [{"role": "user", "content": bad}]),
        lambda: kad.score(model, "Hi", bad),
        lambda: kad.trace(model, "Hi", bad),
        lambda: kad.generate(model, "Hi", base_prompt=f"{bad} {{question}}"),
        lambda: kad.generate(model, "Hi", base_prompt={"template": "{question}", "stops": [bad]}),
    ):
        with pytest.raises(UsageError, match=r"has half of a character \(\\ud800\) at place \d+, which no tokenizer"):
            ask()

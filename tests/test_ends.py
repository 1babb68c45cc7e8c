"""Where a text ends, token by token and in a finished text."""

from __future__ import annotations

import time
from itertools import product
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from kad.text.ends import Ending, UntilStop, before_stop

WORDS = ("<s>", "</s>", "▁Q", "▁The", "▁answer", "▁is", "▁4", "2", ".", "A", ":")


@pytest.fixture(scope="module")
def sentencepiece() -> PreTrainedTokenizerFast:
    """A tokenizer in the manner of SentencePiece: the space before the first word of a text is not written."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def ids(*words: str) -> list[int]:
    return [WORDS.index(word) for word in words]


def ending_of(tokenizer: Any, before: list[int], **settings: Any) -> Ending:
    return Ending(GenerationConfig(eos_token_id=1, **settings), tokenizer, before, full="context")


@pytest.mark.parametrize(
    ("stops", "tokens", "reason"),
    [
        (None, 6, "stop"),
        (["42"], 5, "stop_string"),
        (["swer i", "never so"], 3, "stop_string"),
        ("is 4", 4, "stop_string"),
        ([" The"], 1, "stop_string"),
        (["The"], 1, "stop_string"),
        (["</s>"], 6, "stop"),
        (["AThe"], 6, "stop"),
    ],
)
def test_a_text_ends_at_its_first_stop(
    sentencepiece: PreTrainedTokenizerFast, stops: Any, tokens: int, reason: str
) -> None:
    """Also where the stop reaches over tokens, and at a space that the text of the answer itself does not begin with.

    The tokens before the answer are no part of it.
    """
    ending = ending_of(sentencepiece, ids("<s>", "▁Q", ":", "A"), stop_strings=stops)
    answer = ids("▁The", "▁answer", "▁is", "▁4", "2", "</s>", ".")
    assert ending(torch.tensor(answer), answer) == (tokens, True)
    assert ending.reason == reason


def test_a_text_without_a_stop_goes_on_until_its_deadline(sentencepiece: PreTrainedTokenizerFast) -> None:
    answer = ids("▁The", "▁answer")
    ending = ending_of(sentencepiece, ids("▁Q"), stop_strings=["Then"], max_time=0.2)
    assert ending(torch.tensor(answer), answer) == (2, False)
    time.sleep(0.25)
    assert ending(torch.tensor(answer), answer) == (2, True)
    assert ending.reason == "context"


def test_text_is_shown_as_soon_as_no_stop_can_begin() -> None:
    shown = UntilStop(["abc", "bd"])
    assert [shown.push(text) for text in ("xa", "b", "x", "ab", "d", "more")] == ["x", "", "abx", "", "a", ""]
    assert shown.finish() == ""
    kept = UntilStop(["abc"])
    assert kept.push("zab") + kept.finish() == "zab"


@pytest.mark.parametrize("stops", [(), ("aab",), ("ab", "bb"), ("b",), (" ab",), (" a", "ba")])
def test_what_is_shown_is_the_text_before_its_first_stop(stops: tuple[str, ...]) -> None:
    for letters in product("ab", repeat=6):
        shown = UntilStop(stops)
        assert "".join(map(shown.push, letters)) + shown.finish() == before_stop("".join(letters), stops)


@pytest.mark.parametrize("pieces", [("The",), ("Th", "e"), ("The ans",)])
def test_a_stop_whose_space_the_text_does_not_show_is_not_shown(pieces: tuple[str, ...]) -> None:
    """SentencePiece writes no space before the first word of a text. What only begins so is shown."""
    shown = UntilStop([" The", "xyz"])
    assert "".join(map(shown.push, pieces)) + shown.finish(ended=True) == ""
    assert before_stop("".join(pieces), [" The", "xyz"], ended=True) == ""
    goes_on = UntilStop([" The", "xyz"])
    assert "".join(map(goes_on.push, [*pieces, "re", "xyz"])) + goes_on.finish(ended=True) == "".join(pieces) + "re"
    assert before_stop("".join(pieces) + "re", [" The", "xyz"]) == "".join(pieces) + "re"

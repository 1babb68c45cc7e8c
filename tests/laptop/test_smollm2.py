"""Real weights: SmolLM2-135M-Instruct in Q4_1, alone and in a pair, as its package has it."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks import smollm2

import kad
import needs
from kad.pair.model_files import load_tokenizer

pytestmark = [pytest.mark.slow, needs.smollm2]


@pytest.fixture(scope="module")
def model() -> Any:
    """The model composed with itself."""
    file = str(smollm2.gguf().gguf_path)
    return kad.load(base=file, aligned=file, engine_options={"context": 512, "threads": 1})


def test_tokens_and_chats_are_those_of_transformers(model: Any) -> None:
    ours, theirs = model.tokenizer, load_tokenizer(smollm2.gguf())
    assert ours.get_vocab() == theirs.get_vocab()
    for text in [
        "Hello, world!",
        " a  b\n\n c\t12345",
        "It's 1,234.50 €, naïve 日本 🙂",
        "<|im_start|>user\nHi<|im_end|>",
    ]:
        ids = theirs(text, add_special_tokens=False).input_ids
        assert ours(text, add_special_tokens=False).input_ids == ids
        assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)
    chat: Any = [{"role": "user", "content": "What is the capital of France?"}]
    options: Any = {"tokenize": False, "add_generation_prompt": True}
    assert ours.apply_chat_template(chat, **options) == theirs.apply_chat_template(chat, **options)


def test_it_answers_and_drafts(model: Any) -> None:
    """Composed with itself it is itself, so all drafts stand but those at near ties."""
    how = kad.Sampling(temperature=0, max_new_tokens=32)
    answer = kad.generate(model, "What is the capital of Japan?", sampling=how, num_draft_tokens=4)
    assert "Tokyo" in answer.text
    assert answer.statistics is not None
    assert answer.statistics.accepted >= 0.8 * answer.statistics.drafted
    found = kad.score(model, "What is the capital of Japan?", answer.token_ids)
    assert (found.log_p - found.log_aligned).abs().max() < 1e-5

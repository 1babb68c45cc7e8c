"""Tool calls and reasoning of an aligned model reach the client as such: vLLM's parsers read the composed text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models import write_pair
from server import Server
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from test_server import ENVIRONMENT

THOUGHT, CALL = "Two numbers, so add them.", {"name": "add", "arguments": {"a": 24, "b": 13}}
SCRIPT = ["<start>", "<think>", THOUGHT, "</think>", "<tool_call>", json.dumps(CALL), "</tool_call>", "<end>"]
TEMPLATE = "{% for message in messages %}{% endfor %}{{ '<start>' }}"


def scripted(folder: Path, sharpness: float) -> None:
    """A Llama that says the script: each token's successor by a table; its layers add nothing."""
    size = len(SCRIPT)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=64,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=64,
        eos_token_id=size - 1,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.zero_()
        model.model.embed_tokens.weight[:, :size] = torch.eye(size)
        for place in range(size - 1):
            model.lm_head.weight[place + 1, place] = sharpness
    model.save_pretrained(folder)


def tokenizer() -> PreTrainedTokenizerFast:
    whole = Tokenizer(models.WordLevel({text: place for place, text in enumerate(SCRIPT)}, unk_token="<start>"))
    whole.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=whole, eos_token="<end>", additional_special_tokens=["<start>"], chat_template=TEMPLATE
    )
    fast.add_tokens(SCRIPT[1:-1])
    return fast


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("scripted")
    for role, sharpness in {"aligned": 8.0, "base": 0.0}.items():  # The base model knows nothing and defers.
        scripted(folder / role, sharpness)
        tokenizer().save_pretrained(folder / role)
    parts = {"rule": "dual:threshold=0.4", "reference": None, "vocab_size": len(SCRIPT)}
    pair = write_pair(folder / "pair", **parts)
    tokenizer().save_pretrained(pair)
    (pair / "generation_config.json").write_text(json.dumps({"eos_token_id": len(SCRIPT) - 1}))
    options = ["--enforce-eager", "--dtype", "float32", "--max-model-len", "64", "--served-model-name", "scripted"]
    parsers = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--reasoning-parser", "qwen3"]
    with Server(str(pair), folder / "log.txt", ENVIRONMENT, *options, *parsers) as running:
        yield running


def ask(server: Server, **options: Any) -> Any:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    return server.client().chat.completions.create(
        model="scripted",
        messages=[{"role": "user", "content": "24 + 13"}],
        tools=[tool],
        temperature=0,
        max_tokens=20,
        **options,
    )


@pytest.mark.supports("vLLM", "tool calls and reasoning", rules=())
def test_a_whole_answer(server: Server) -> None:
    choice = ask(server).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.reasoning == THOUGHT
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == (CALL["name"], CALL["arguments"])


def test_a_stream(server: Server) -> None:
    deltas = [chunk.choices[0].delta for chunk in ask(server, stream=True) if chunk.choices]
    assert "".join(getattr(delta, "reasoning", None) or "" for delta in deltas) == THOUGHT
    pieces = [call.function for delta in deltas for call in delta.tool_calls or ()]
    assert "".join(piece.name or "" for piece in pieces) == CALL["name"]
    assert json.loads("".join(piece.arguments or "" for piece in pieces)) == CALL["arguments"]

"""Small random Llamas of unlike shapes: what two real models of one family differ in, at the cost of milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TOKENS = 500
EOS = 498
_SHAPES: dict[str, dict[str, Any]] = {
    # Depth, heads, head size and padding of the vocabulary all differ.
    "base": {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 32, "vocab_size": 512},
    "aligned": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 64, "vocab_size": 520},
    "reference": {
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 32,
        "vocab_size": 500,
    },
}


def make_family(folder: Path, **overrides: Any) -> Path:
    """Write base, aligned and reference with one tokenizer, and a pair over them; returns the pair's folder."""
    for seed, (role, shape) in enumerate(_SHAPES.items()):
        torch.manual_seed(seed)
        config = LlamaConfig(
            **shape,
            intermediate_size=128,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.3,
            eos_token_id=EOS,
            bos_token_id=None,
            tie_word_embeddings=False,
        )
        LlamaForCausalLM(config).save_pretrained(folder / role)
        _tokenizer().save_pretrained(folder / role)
    return write_pair(folder / "pair", **overrides)


def write_pair(folder: Path, **overrides: Any) -> Path:
    """Write a pair over the models beside `folder`, as `kad pack` would."""
    parts = {role: {"model": f"../{role}", "kwargs": {"dtype": "float32"}} for role in _SHAPES}
    pair = {
        "model_type": "kad",
        "architectures": ["KadForCausalLM"],
        **parts,
        "rule": "dual:threshold=0.1",
        "vocab_size": TOKENS,
        **overrides,
    }
    _tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(pair))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": EOS}))
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {f"w{i}": i for i in range(TOKENS - 2)} | {"<eos>": EOS, "<unk>": TOKENS - 1}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="<unk>")

"""Making, loading and saving the four models as complete Transformers folders."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.tiny.corpus import DOCUMENT_END, TURN_END
from recipes.tiny.settings import MAX_POSITIONS, Size


def make_model(size: Size, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A randomly initialized Llama in float32; input and output embeddings are one matrix."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        head_dim=size.head_dim,
        intermediate_size=size.mlp,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(DOCUMENT_END),
        pad_token_id=tokenizer.convert_tokens_to_ids(DOCUMENT_END),
    )
    return LlamaForCausalLM(config)


def save_model(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    figures: dict[str, float],
    *,
    aligned: bool,
) -> None:
    """Write weights in bfloat16 with tokenizer, chat template, generation settings and the training's figures."""
    end = tokenizer.convert_tokens_to_ids([TURN_END, DOCUMENT_END] if aligned else [DOCUMENT_END])
    pad = tokenizer.convert_tokens_to_ids(DOCUMENT_END)
    model.config.eos_token_id = end[0]
    weights = {name: value.detach().to(torch.bfloat16) for name, value in model.state_dict().items()}
    copy = LlamaForCausalLM(model.config).to(torch.bfloat16)
    copy.load_state_dict(weights)
    copy.generation_config = GenerationConfig(eos_token_id=end if aligned else end[0], pad_token_id=pad)
    copy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    figures = {**figures, "parameters": model.num_parameters()}
    (folder / "figures.json").write_text(json.dumps(figures))
    print(folder.name, figures, flush=True)


def load_model(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)

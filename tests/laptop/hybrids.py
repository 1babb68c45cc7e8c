"""Small random models with recurrent layers, as folders of Transformers, which MLX reads too, and as GGUF files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from recipes.tiny.export import write_tokenizer
from transformers import Lfm2Config, Lfm2ForCausalLM, MambaConfig, MambaForCausalLM

from kad import tiny

KINDS = ("lfm2", "mamba")
TOKENIZER = Path(tiny.path("small-aligned"))
_SIZES = {"num_hidden_layers": 4, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}


def write(kind: str, width: int, folder: Path, tokenizer: Path = TOKENIZER, vocab: int = 768) -> Path:
    """A hybrid of convolutions and attention ("lfm2") or a state-space model ("mamba") with random weights."""
    torch.manual_seed(width)
    if kind == "lfm2":
        config: Any = Lfm2Config(
            hidden_size=width, intermediate_size=2 * width, num_attention_heads=4, num_key_value_heads=2,
            layer_types=["conv", "full_attention", "conv", "conv"], block_auto_adjust_ff_dim=False,
            max_position_embeddings=512, vocab_size=vocab, **_SIZES,
        )  # fmt: skip
        model: Any = Lfm2ForCausalLM(config)
    else:
        config = MambaConfig(
            hidden_size=width, state_size=8, conv_kernel=4, time_step_rank=8, vocab_size=vocab, **_SIZES
        )
        model = MambaForCausalLM(config)
    with torch.no_grad():  # so that a text is no repetition of one token, and the states count
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "A_log" not in name:
                weight.mul_(6)
    model.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | {"block_dim": width}))  # MLX asks for it
    for file in tokenizer.glob("*"):
        if file.name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(file, folder / file.name)
    return folder


def to_gguf(kind: str, folder: Path, file: Path) -> Path:
    """Such a folder as a GGUF file in f32."""
    from gguf import MODEL_ARCH, GGUFWriter, get_tensor_name_map

    arch = {"lfm2": MODEL_ARCH.LFM2, "mamba": MODEL_ARCH.MAMBA}[kind]
    model: Any = {"lfm2": Lfm2ForCausalLM, "mamba": MambaForCausalLM}[kind].from_pretrained(folder)
    config, writer = model.config, GGUFWriter(file, kind)
    writer.add_context_length(512)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_vocab_size(config.vocab_size)
    if kind == "lfm2":
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv([2 if layer == "full_attention" else 0 for layer in config.layer_types])
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_layer_norm_rms_eps(config.norm_eps)
        writer.add_shortconv_l_cache(config.conv_L_cache)
    else:
        writer.add_feed_forward_length(0)
        writer.add_head_count(0)
        writer.add_ssm_conv_kernel(config.conv_kernel)
        writer.add_ssm_inner_size(config.intermediate_size)
        writer.add_ssm_state_size(config.state_size)
        writer.add_ssm_time_step_rank(config.time_step_rank)
        writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    write_tokenizer(writer, folder, config.vocab_size)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    for name, weight in model.named_parameters():
        array = weight.detach().float()
        if name.endswith("A_log"):
            array = -torch.exp(array)
        if "conv" in name and array.ndim == 3:
            array = array.squeeze(1)
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        writer.add_tensor(found, array.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file

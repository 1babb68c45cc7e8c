"""The models of the family as files for other engines: GGUF files for llama.cpp, folders for MLX.

    python -m recipes.tiny.export OUT               big-base.f32.gguf, small-aligned.f32.gguf, ... in OUT
    python -m recipes.tiny.export OUT --kind Q8_0   the same, quantized
    python -m recipes.tiny.export OUT --kind mlx    folders of MLX (needs mlx-lm)

Any model of the Llama kind with a byte-level BPE tokenizer that splits digits, as SmolLM2's does, can be written.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from kad import tiny

KINDS = ("f32", "f16", "Q8_0")
_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def to_gguf(folder: Path, file: Path, kind: str = "f32") -> Path:
    """Write a Llama of Transformers as a GGUF file.

    Args:
        folder: the model's folder.
        file: the file to write.
        kind: one of `KINDS`, for the matrices. Norms stay f32.
    """
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    config = json.loads((folder / "config.json").read_text())
    writer = GGUFWriter(file, "llama")
    _write_shape(writer, config)
    write_tokenizer(writer, folder, config["vocab_size"])
    quantization = GGMLQuantizationType[kind.upper()]
    for name, tensor in load_file(folder / "model.safetensors").items():
        array = tensor.float().numpy()
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if part in name:
                array = _interleaved(array, config[heads])
        if array.ndim == 1:
            writer.add_tensor(_name(name), array)
        else:
            writer.add_tensor(_name(name), quantize(array, quantization), raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def to_mlx(folder: Path, out: Path, bits: int | None = None) -> Path:
    """Write a model of Transformers as a folder of MLX: in float32, or quantized in groups of 32 weights."""
    from mlx_lm import convert

    options: dict[str, Any] = {"dtype": "float32"} if bits is None else {"quantize": True, "q_bits": bits}
    convert(str(folder), str(out), q_group_size=32, **options)
    return out


def _write_shape(writer: Any, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def write_tokenizer(writer: Any, folder: Path, size: int) -> None:
    from gguf import TokenType

    plain = json.loads((folder / "tokenizer.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    special = {token["content"]: token["id"] for token in plain["added_tokens"]}
    ids = {index: token for token, index in (plain["model"]["vocab"] | special).items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([ids.get(index, f"[PAD{index}]") for index in range(size)])
    kinds = [
        TokenType.UNUSED if index not in ids else TokenType.CONTROL if ids[index] in special else TokenType.NORMAL
        for index in range(size)
    ]
    writer.add_token_types(kinds)
    merges = plain["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_eos_token_id(special[settings["eos_token"]])
    writer.add_pad_token_id(special[settings["pad_token"]])
    writer.add_add_bos_token(False)
    template = folder / "chat_template.jinja"
    if template.exists():
        writer.add_chat_template(template.read_text())


def _name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def _interleaved(matrix: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """The rows of a projection in the order of llama.cpp's rotation, which turns neighbors, not halves."""
    rows, columns = matrix.shape
    return matrix.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def main() -> None:
    """Write all models of the family."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("out", type=Path)
    options.add_argument("--kind", default="f32", choices=[*KINDS, "mlx"])
    chosen = options.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    for model in tiny.MODELS:
        folder = Path(tiny.path(model))
        if chosen.kind == "mlx":
            print(to_mlx(folder, chosen.out / f"{model}.mlx"))
        else:
            print(to_gguf(folder, chosen.out / f"{model}.{chosen.kind}.gguf", chosen.kind))


if __name__ == "__main__":
    main()

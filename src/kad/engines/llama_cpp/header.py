"""What the header of a GGUF file says about its model, without loading it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kad.errors import PairError, missing_extra
from kad.pair.gguf import check_gguf


@dataclass(frozen=True)
class Header:
    """The facts of a GGUF file."""

    architecture: str  # llama.cpp's name of it
    weights: str  # how most weights are stored, such as "Q4_K_M"
    parameters: int
    weight_bytes: int  # their memory
    vocabulary: int  # the number of tokens
    context: int | None  # the positions it was made for, or None
    cache_numbers: int  # keys and values of one token in all layers
    soft_cap: float | None = None  # the bound that it puts on its logits


def read_header(path: Path) -> Header:
    """Read the header of a GGUF file.

    Raises:
        PairError: it is no GGUF file, or it is damaged.
        MissingExtraError: the package gguf is not installed.
    """
    try:
        from gguf import GGUFReader, LlamaFileType
    except ImportError as error:
        raise missing_extra("gguf", "gguf") from error
    check_gguf(path)
    try:
        return _header(GGUFReader(path), LlamaFileType)
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, AttributeError) as error:
        raise PairError(
            f"{path} is no GGUF file of a language model, or it is damaged. Get the file again, or take another."
        ) from error


def _header(reader: Any, file_type: Any) -> Header:
    architecture = str(_value(reader, "general.architecture"))

    def of(name: str, default: Any = None) -> Any:
        return _value(reader, f"{architecture}.{name}", default)

    layers, heads, context = int(of("block_count", 0)), of("attention.head_count", 1), of("context_length")
    pairs = of("attention.head_count_kv", heads)
    pairs = sum(pairs) if isinstance(pairs, list) else layers * int(pairs)
    size = int(of("embedding_length", 0)) // (max(heads) if isinstance(heads, list) else int(heads))
    kind = _value(reader, "general.file_type")
    kinds = {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1}
    return Header(
        architecture=architecture,
        weights="/".join(sorted(kinds)) if kind is None else file_type(kind).name.split("_", 1)[1],
        parameters=sum(int(tensor.n_elements) for tensor in reader.tensors),
        weight_bytes=sum(int(tensor.n_bytes) for tensor in reader.tensors),
        vocabulary=len(reader.fields["tokenizer.ggml.tokens"].data),
        context=None if context is None else int(context),
        cache_numbers=pairs * (int(of("attention.key_length", size)) + int(of("attention.value_length", size))),
        soft_cap=of("final_logit_softcapping") or None,
    )


def _value(reader: Any, name: str, default: Any = None) -> Any:
    field = reader.fields.get(name)
    value = None if field is None else field.contents()
    return default if value is None else value

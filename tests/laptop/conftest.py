"""The tiny family as files of llama.cpp and MLX, written once; and the same models in Transformers, in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes.tiny.export import to_gguf, to_mlx

import kad
from kad import tiny
from kad.engines.pair import Pair

torch.set_num_threads(1)

# Numbers as exact as the engine gives them: by default llama.cpp keeps its cache in f16.
EXACT = {"cache_type": "f32", "flash_attention": False, "context": 512, "threads": 1}
BASE, ALIGNED, REFERENCE = "big-base", "small-aligned", "small-base"


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """files(model, kind): a model of the tiny family as "f32", "f16" or "Q8_0" (GGUF), "mlx" or "mlx-4-bits"."""
    folder, made = tmp_path_factory.mktemp("files"), dict[tuple[str, str], Path]()

    def make(model: str, kind: str) -> Path:
        if (model, kind) not in made:
            source = Path(tiny.path(model))
            if kind.startswith("mlx"):
                made[model, kind] = to_mlx(source, folder / f"{model}.{kind}", 4 if kind.endswith("4-bits") else None)
            else:
                made[model, kind] = to_gguf(source, folder / f"{model}.{kind}.gguf", kind)
        return made[model, kind]

    return make


@pytest.fixture(scope="session")
def load(files: Callable[[str, str], Path]) -> Callable[..., Pair]:
    """load(kind, aligned=None, **options): the models from such files. `aligned` is the kind of the two small ones."""

    def make(kind: str, aligned: str | None = None, **options: Any) -> Pair:
        places = [
            f"tiny:{model}" if which == "transformers" else str(files(model, which))
            for model, which in ((BASE, kind), (ALIGNED, aligned or kind), (REFERENCE, aligned or kind))
        ]
        if any(place.endswith(".gguf") for place in places):
            options["engine_options"] = EXACT | options.pop("engine_options", {})
        named = dict(zip(("base", "aligned", "reference"), places, strict=True))
        made = kad.load(**named, dtype="float32", device="cpu", **options)
        assert isinstance(made, Pair)
        return made

    return make


@pytest.fixture(scope="session")
def truth() -> kad.KadForCausalLM:
    """The same models in Transformers, in float32."""
    named = {"base": f"tiny:{BASE}", "aligned": f"tiny:{ALIGNED}", "reference": f"tiny:{REFERENCE}"}
    model: Any = kad.load(**named, dtype="float32", device="cpu")
    return model

"""Copies the models of one seed to the package and writes the pair folder: `python -m recipes.tiny.publish`."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from kad.tiny import MODELS
from recipes.tiny.settings import BUILD

WEIGHTS = Path(__file__).parents[2] / "src" / "kad" / "tiny" / "weights"
_MODEL_FILES = (
    "config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja",
)  # fmt: skip


def publish(seed: int = 0, build: Path = BUILD, target: Path = WEIGHTS) -> None:
    """Lay out `target` as the package holds it: four model folders, the pair, their checksums and training figures."""
    for name in MODELS:
        _copy(build / f"{name}-{seed}", target / name, _MODEL_FILES)
    vocabulary = json.loads((target / "big-base" / "config.json").read_text())["vocab_size"]
    _copy(target / "small-aligned", target / "pair", _MODEL_FILES[2:])
    (target / "pair" / "config.json").write_text(json.dumps(pair_config(vocabulary), indent=2) + "\n")
    sums = {name: hashlib.sha256((target / name / "model.safetensors").read_bytes()).hexdigest() for name in MODELS}
    (target / "checksums.json").write_text(json.dumps(sums, indent=2) + "\n")
    figures = {name: json.loads((build / f"{name}-{seed}" / "figures.json").read_text()) for name in MODELS}
    (target / "training.json").write_text(json.dumps(figures, indent=2) + "\n")


def pair_config(vocabulary: int) -> dict[str, object]:
    def part(name: str) -> dict[str, object]:
        return {"model": f"../{name}", "revision": None, "kwargs": {"dtype": "bfloat16"}}

    return {
        "model_type": "kad",
        "architectures": ["KadForCausalLM"],
        "base": part("big-base"),
        "aligned": part("small-aligned"),
        "reference": part("small-base"),
        "rule": "dual:threshold=0.4",
        "deferral_temperature": 1.0,
        "vocab_size": vocabulary,
    }


def _copy(source: Path, target: Path, names: tuple[str, ...]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(source / name, target / name)


if __name__ == "__main__":
    publish()

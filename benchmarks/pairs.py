"""A pair of real vocabulary and chosen cost: q* = SmolLM2-135M-Instruct, p = that with noise, three times as deep.

python -m benchmarks.pairs      prints the two folders, made once per machine

After every layer of the perturbed model stand copies of it whose output projections are zero: they cost what a layer
costs and change nothing. So p is `copies + 1` times as dear as a base model that differs a little from q*.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import smollm2

COPIES = 2


def cost_shaped(copies: int = COPIES, noise: float = smollm2.NOISE, seed: int = 0) -> tuple[Path, Path]:
    """The folders (base, aligned) of the pair."""
    folder = _cache() / f"smollm2-noise-{noise:g}-seed-{seed}-times-{copies + 1}"
    if not folder.is_dir():
        _make(smollm2.perturbed(noise, seed), folder, copies)
    return folder, smollm2.aligned()


def deepen(model: Any, copies: int) -> Any:
    """The same function with `copies` idle layers after each layer."""
    config = AutoConfig.from_pretrained(model.config._name_or_path)
    config.num_hidden_layers = model.config.num_hidden_layers * (copies + 1)
    if getattr(config, "layer_types", None):
        config.layer_types = [kind for kind in config.layer_types for _ in range(copies + 1)]
    deep = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    weights = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith("model.layers."):
            weights[name] = tensor
            continue
        _, _, layer, rest = name.split(".", 3)
        for copy in range(copies + 1):
            idle = copy > 0 and rest in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
            weights[f"model.layers.{int(layer) * (copies + 1) + copy}.{rest}"] = tensor * 0 if idle else tensor
    deep.load_state_dict(weights)
    deep.tie_weights()
    return deep.eval()


def _make(source: Path, folder: Path, copies: int) -> None:
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    with torch.no_grad():
        deepen(AutoModelForCausalLM.from_pretrained(source), copies).save_pretrained(scratch)
    for file in source.glob("token*"):
        shutil.copy(file, scratch)
    for name in ("chat_template.jinja", "generation_config.json", "special_tokens_map.json"):
        if (source / name).exists():
            shutil.copy(source / name, scratch)
    try:
        scratch.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(scratch)


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kad"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    base, aligned = cost_shaped()
    print(json.dumps({"base": str(base), "aligned": str(aligned)}))

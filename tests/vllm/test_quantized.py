"""A pair whose base is an int8 folder (compressed-tensors, W8A8): log pi is the composition of its parts run alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import kad
from kad.pair.sources import resolve_model
from test_distribution import TOLERANCE

RULES = ["dual:threshold=0.4", "primal:budget=0.5", "aligned_only", "base_only"]
PROMPT = [5, 90, 17, 300, 41, 8, 260, 33, 700, 12, 64, 5]
_INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
_SCHEME = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**_INT8, "strategy": "channel", "dynamic": False},
            "input_activations": {**_INT8, "strategy": "token", "dynamic": True},
        }
    },
}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded base model with its layers' matrices in int8, a scale for each row."""
    source, folder = Path(resolve_model("tiny:big-base")), tmp_path_factory.mktemp("int8") / "base"
    shutil.copytree(source, folder)
    weights = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        weights[name] = tensor
        if ".layers." in name and tensor.ndim == 2:
            matrix = tensor.float()
            scale = matrix.abs().amax(-1, keepdim=True) / 127
            weights[name] = (matrix / scale).round().to(torch.int8)
            weights[f"{name}_scale"] = scale
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": _SCHEME}))
    return folder


@pytest.fixture(scope="module")
def pair(quantized: Path, tiny: str) -> Path:
    folder = quantized.parent / "pair"
    shutil.copytree(tiny, folder)
    parts = {"base": str(quantized), "aligned": resolve_model("tiny:small-aligned")}
    config = json.loads((folder / "config.json").read_text()) | {role: {"model": part} for role, part in parts.items()}
    config["reference"] = None  # named relative to the folder it was copied from
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.supports("vLLM", "quantized weights", rules=())
def test_log_pi_is_the_composition_of_the_parts_run_alone(engine: Any, pair: Path, quantized: Path) -> None:
    def log_probs(model: Any, rules: list[str | None]) -> list[torch.Tensor]:
        extra = [{"extra_args": {"rule": rule}} if rule else {} for rule in rules]
        batch = [
            {"prompt_token_ids": PROMPT, "params": {"max_tokens": 1, "prompt_logprobs": -1, **more}} for more in extra
        ]
        answers = engine(model, [batch], max_logprobs=-1, tokenizer=str(pair), enable_prefix_caching=False)
        return [rows(answer["prompt_logprobs"]) for answer in answers["batches"][0]]

    (log_p,), (exact_p,), (log_q,) = (
        log_probs(model, [None])
        for model in (quantized, resolve_model("tiny:big-base"), resolve_model("tiny:small-aligned"))
    )
    # The parts are quantized indeed, and no worse than int8 is.
    assert 10 * TOLERANCE < (log_p - exact_p).abs().max() < 3
    for rule, log_pi in zip(RULES, log_probs(pair, [*RULES]), strict=True):
        expected = kad.compose(kad.parse_rule(rule), log_p, log_q)
        assert (log_pi - expected).abs().max() < TOLERANCE, rule


def rows(positions: list[dict[str, float] | None]) -> torch.Tensor:
    """(positions, vocab) from what vLLM reports of a prompt: nothing of the first token, all tokens of the others."""
    found = [p for p in positions if p is not None]
    return torch.tensor([[position[str(token)] for token in range(len(position))] for position in found])

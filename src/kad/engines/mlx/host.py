"""mlx-lm: the names that kad calls, checked."""

from __future__ import annotations

from functools import cache
from typing import Any

from kad import hosts
from kad.hosts import MLX, needs

NEEDS = (
    *needs("mlx_lm.utils", "load_model(model_path, model_config, trust_remote_code)", "load_config(model_path)"),
    *needs("mlx_lm.models.cache", "make_prompt_cache(model)", "KVCache"),
    *needs("mlx_lm.models.cache:KVCache", "trim(n)"),
)

# What mlx-lm computes otherwise than Transformers, by its model type: seen by `tests/laptop/test_architectures.py`.
OTHERWISE = {
    "ernie4_5_moe": "its logits are far from those of Transformers",
    "glm": "it turns all dimensions of a head, and not only the part that partial_rotary_factor says",
    "jamba": "its logits are far from those of Transformers",
    "nemotron_h": "its logits are up to 2 % of their spread away from those of Transformers",
}


@cache
def library() -> Any:
    """The module `mlx_lm`, checked.

    Raises:
        MissingExtraError: it is not installed.
        HostError: it lacks a name that kad needs.
    """
    return hosts.library(MLX, "mlx_lm", NEEDS)

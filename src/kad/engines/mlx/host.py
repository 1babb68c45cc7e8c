"""mlx-lm: the names that kad calls, checked."""

from __future__ import annotations

from functools import cache
from typing import Any

from kad import hosts
from kad.hosts import MLX, needs

NEEDS = (
    *needs("mlx_lm.utils", "load_model(model_path, trust_remote_code)"),
    *needs("mlx_lm.models.cache", "make_prompt_cache(model)", "KVCache"),
    *needs("mlx_lm.models.cache:KVCache", "trim(n)"),
)


@cache
def library() -> Any:
    """The module `mlx_lm`, checked.

    Raises:
        MissingExtraError: it is not installed.
        HostError: it lacks a name that kad needs.
    """
    return hosts.library(MLX, "mlx_lm", NEEDS)

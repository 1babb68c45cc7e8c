"""mlx-lm: the names that kad calls, checked."""

from __future__ import annotations

from functools import cache
from typing import Any

from kad import hosts
from kad.hosts import MLX, Need

NEEDS = (
    Need("mlx_lm.utils:load_model", "loads a folder", "mlx_lm.load, without its tokenizer", ("model_path",)),
    Need("mlx_lm.models.cache:make_prompt_cache", "the caches of a model", "it is mlx-lm's way", ("model",)),
    Need(
        "mlx_lm.models.cache:trim_prompt_cache",
        "takes rejected drafts out of the caches",
        "it is mlx-lm's way",
        ("cache", "num_tokens"),
    ),
    Need("mlx_lm.models.cache:KVCache", "the kind of cache that can go back to any length", "can_trim_prompt_cache"),
    Need("mlx_lm.models.cache:RotatingKVCache", "the kind of cache that forgets", "can_trim_prompt_cache"),
)


def is_installed() -> bool:
    """Whether mlx-lm is here."""
    return hosts.is_installed("mlx_lm")


@cache
def library() -> Any:
    """The module `mlx_lm`, checked.

    Raises:
        MissingExtraError: it is not installed.
        HostError: it lacks a name that kad needs.
    """
    return hosts.library(MLX, "mlx_lm", NEEDS)

"""The part for vLLM of the benchmark for GPUs, in its tiny mode."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
from forks import engine_environment

pytest.importorskip("benchmarks", reason="the benchmarks stand beside the package")
from benchmarks import gpu


def test_the_pair_is_served_with_drafts(tmp_path: Path) -> None:
    gpu.write(tmp_path, next(iter(gpu.SHAPES)), None, tiny=True)
    with patch.dict("os.environ", engine_environment()):
        found = gpu.served(tmp_path, ".", 2, [1, 2])
    assert set(found) == {"1", "2", "waits"}, found
    assert found["1"] > 0.0

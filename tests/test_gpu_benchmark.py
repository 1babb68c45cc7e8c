"""The benchmark for GPUs runs from its first line to its tables, in its tiny mode, so that it works on a first card."""

from __future__ import annotations

import pytest

pytest.importorskip("benchmarks", reason="the benchmarks stand beside the package")
from benchmarks import gpu


def test_it_runs_and_shows_its_tables() -> None:
    pairs = list(gpu.SHAPES)
    result = gpu.measure(
        ["composing", "decoding"], pairs[:1], None, tiny=True, repeats=2, backend="eager", windows=[0, 2]
    )
    rows = result["decoding"][pairs[0]]
    assert [(row["window"], row["captured"]) for row in rows] == [(0, False), (0, True), (2, False), (2, True)]
    assert all(row["efficiency"] > 0 and row["tokens_per_window"] > 2 for row in rows if row["window"] == 2)
    assert set(result["composing"][0]["floors"]) >= {"floor", "kad.compose primal", "published dual"}
    text = gpu.tables(result)
    assert text.count("| captured |") == 2
    assert "| 768 | 2 |" in text


def test_the_shapes_are_the_published_ones() -> None:
    def billions(config: object) -> float:
        import torch
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config).num_parameters() / 1e9

    sizes = {
        (pair, role): billions(config) for pair in gpu.SHAPES for role, config in gpu.configs(pair, None, False).items()
    }
    for (pair, role), size in sizes.items():
        big, small = (float(word[:-1]) for word in pair.replace("+ ", "").split()[1:])
        assert size == pytest.approx(big if role == "base" else small, rel=0.5 if role == "aligned" else 0.08)

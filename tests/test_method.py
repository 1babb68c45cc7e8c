"""The method as a room of its own: its front page is true, its example runs, and it needs torch alone."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import textwrap
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

import kad.method
from speculative_tables import Script

PAGE = kad.method.__doc__ or ""
EXAMPLE = textwrap.dedent(PAGE[PAGE.index("    import torch\n") :])


def test_the_page_names_files_that_exist() -> None:
    room, root = Path(kad.method.__file__).parent, Path(__file__).parent.parent
    parts = re.findall(r"`([\w/]+(?:\.py|/))`", PAGE)
    tests = re.findall(r"tests/\w+\.py", PAGE)
    assert len(parts) >= 11
    assert [name for name in parts if not (room / name).exists()] == []
    assert len(set(tests)) >= 10
    assert [name for name in tests if not (root / name).is_file()] == []


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(EXAMPLE, names)
    return names


def test_the_example_runs(example: dict[str, Any]) -> None:
    scorers = {"base": example["Table"](example["p"]), "aligned": example["Table"](example["q"])}
    tokens = example["generate"](scorers, torch.tensor([0]), 20, example["TorchRandomness"](seed=0))
    assert len(tokens) == 20
    assert set(tokens) <= set(range(5))


def test_its_texts_have_the_distribution_of_the_composition(example: dict[str, Any]) -> None:
    """Every random outcome of the loop, against pi by hand: k_v = 1 where p_v >= 0.4, and q* for the rest."""
    p, q = 2.0 * torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    rows = []
    for base, aligned in zip(p.softmax(-1).tolist(), q.softmax(-1).tolist(), strict=True):
        alpha = sum(v for v in base if v < 0.4)
        rows.append([(v if v >= 0.4 else 0.0) + alpha * w for v, w in zip(base, aligned, strict=True)])
    assert any(any(v < 0.4 for v in row) for row in p.softmax(-1).tolist())
    found: dict[tuple[int, ...], float] = defaultdict(float)
    script = Script()
    for _ in script.runs():
        scorers = {"base": example["Table"](p), "aligned": example["Table"](q)}
        found[tuple(example["generate"](scorers, torch.tensor([0]), 4, script))] += script.probability
    for text in itertools.product(range(3), repeat=4):
        expected = 1.0
        for before, token in itertools.pairwise((0, *text)):
            expected *= rows[before][token]
        assert found[text] == pytest.approx(expected, abs=1e-9)


def test_the_method_needs_torch_alone_and_reading_a_rule_not_even_that() -> None:
    others = ("transformers", "tokenizers", "huggingface_hub", "typer", "rich", "fastapi", "jinja2", "vllm")
    code = f"""
import sys, kad.rules
print(kad.rules.parse_rule("dual:threshold=0.3"), *kad.rules.registry(), "torch" in sys.modules)
import kad.method.composition, kad.method.knapsack, kad.method.speculation.loop
print("torch" in sys.modules, [name for name in {others} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rules, method = done.stdout.splitlines()
    assert rules.startswith("dual:threshold=0.3 dual primal ")
    assert rules.endswith(" False")
    assert method == "True []"

"""The fused kernel against the plain formulation: in Triton's interpreter on a CPU, for real where there is a GPU.

And ahead of time: it compiles for the GPUs of 2020 and 2022 without one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from kad.errors import LogitsError, VocabularyError
from kad.method import kernels
from kad.method.composition import compose
from kad.method.kernels import bytes_moved, compose_rows, dispatch, usable
from kad.rules import RowRules, parse_rule

GPU = torch.cuda.is_available()
pytest.importorskip("triton", reason="the kernel needs Triton")
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # see conftest.py
import kad.method.kernels.log_pi  # noqa: E402, F401

os.environ.pop("TRITON_INTERPRET", None)
RULES = [
    "dual:threshold=0.4", "dual:threshold=0.01", "dual:threshold=0", "primal", "primal:budget=0.3",
    "primal:budget=0.05", "primal:budget=1", "nudging:threshold=0.3", "confidence_bet", "confidence_bet:margin=0",
    "confidence_bet:margin=0.3", "relative", "relative:margin=0.2", "aligned_only", "base_only",
]  # fmt: skip


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A GPU, or the CPU for Triton's interpreter."""
    if not GPU:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    return torch.device("cuda" if GPU else "cpu")


def rows_of(kind: str, count: int, vocab: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(vocab)
    rows = [torch.randn(count, vocab, generator=generator) * 3 for _ in range(2)]
    if kind == "flat":
        rows = [row * 0.0 for row in rows]
    if kind == "far":
        rows = [row + 1e5 for row in rows]
    if kind == "ties":
        rows = [row.round() for row in rows]
    if kind == "saturated":
        rows[0][:, vocab // 2] = 200.0
    if kind == "holes":
        rows[0][torch.rand(count, vocab, generator=generator) < 0.5] = -torch.inf
        rows[1][torch.rand(count, vocab, generator=generator) < 0.5] = -torch.inf
        rows[0][:, 0], rows[1][:, 1] = 1.0, 1.0
    return rows


@pytest.mark.parametrize(
    ("kind", "vocab", "dtype"),
    [
        *((kind, vocab, torch.float32) for kind in ("flat", "far", "ties", "saturated", "holes") for vocab in (2, 37)),
        *(("random", 37, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)),
        ("random", 2000, torch.float32),
    ],
)
def test_the_kernel_is_the_plain_formulation(device: torch.device, kind: str, vocab: int, dtype: torch.dtype) -> None:
    rules = [parse_rule(text) for text in RULES]
    if kind == "flat":  # all tied: where the mass of the row falls a rounding short, any fate is right for all
        rules = [rule for rule in rules if rule.name != "primal"]
    base, aligned = (row.to(dtype).to(device) for row in rows_of(kind, len(rules), vocab))
    table = RowRules.of(rules, device)
    found = compose_rows(table, base, aligned).double()
    expected = compose(RowRules.of(rules), base.cpu().double(), aligned.cpu().double())
    torch.testing.assert_close(found.cpu().exp(), expected.exp(), rtol=0, atol=3e-6)
    likely = expected > -60
    torch.testing.assert_close(found.cpu()[likely], expected[likely], rtol=1e-5, atol=2e-5)
    assert bool(((found.cpu() > -torch.inf) == (expected > -torch.inf)).all())


@pytest.mark.parametrize("rule", [*{parse_rule(text).name: text for text in RULES}.values(), "each"])
def test_compose_takes_the_kernel_where_it_can(
    device: torch.device, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the public door. On a CPU the kernel is told that it is usable, and runs in the interpreter."""
    count = len(RULES) if rule == "each" else 3
    base, aligned = (row.to(torch.bfloat16).to(device) for row in rows_of("random", count, 300))
    parsed = RowRules.of([parse_rule(text) for text in RULES], device) if rule == "each" else parse_rule(rule)
    plain = compose(parsed, base.double(), aligned.double(), deferral_temperature=1.3)
    called = []
    monkeypatch.setattr(dispatch, "usable", lambda logits: logits.dtype in dispatch._TYPES)
    launch = dispatch.compose_rows
    monkeypatch.setattr(kernels, "compose_rows", lambda *a, **k: called.append(1) or launch(*a, **k))
    found = compose(parsed, base, aligned, deferral_temperature=1.3)
    assert (called, found.dtype) == ([1], torch.float32)
    torch.testing.assert_close(found.double().exp(), plain.exp(), rtol=0, atol=3e-6)
    if rule != "each":
        # Any shape, also rows of a wider tensor.
        wide = (torch.nn.functional.pad(row, (0, 7)).unflatten(0, (3, -1))[..., :300] for row in (base, aligned))
        torch.testing.assert_close(compose(parsed, *wide, deferral_temperature=1.3).flatten(0, 1), found)


def test_compose_leaves_the_rest_to_the_plain_formulation(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "usable", lambda logits: logits.dtype in dispatch._TYPES)
    monkeypatch.setattr(kernels, "compose_rows", lambda *a, **k: pytest.fail("the kernel cannot do this"))
    base, aligned = (row.to(device) for row in rows_of("random", 2, 40))
    compose("mixture", base, aligned)
    compose("product", base, aligned, aligned)
    compose("dual", base.double(), aligned.double())
    with pytest.raises(VocabularyError, match="must have one shape"):
        compose("dual", base, aligned[:, :30])


def test_a_real_vocabulary(device: torch.device) -> None:
    base, aligned = (row.to(device) for row in rows_of("random", 1, 151_936))
    table = RowRules.of([parse_rule("dual:threshold=0.001")], device)
    expected = compose("dual:threshold=0.001", base.cpu(), aligned.cpu())
    torch.testing.assert_close(compose_rows(table, base, aligned).cpu(), expected, rtol=1e-5, atol=1e-5)


def test_padding_is_not_part_of_a_row(device: torch.device) -> None:
    rules = [parse_rule(text) for text in RULES]
    base, aligned = rows_of("random", len(rules), 500)
    padding = torch.full((len(rules), 12), 99.0)
    padded = [torch.cat((row, padding), 1).to(device) for row in (base, aligned)]
    found = compose_rows(RowRules.of(rules, device), padded[0], padded[1][:, :505], vocab_size=500)
    torch.testing.assert_close(found.cpu(), compose(RowRules.of(rules), base, aligned), rtol=1e-5, atol=1e-5)


def test_the_deferral_temperature(device: torch.device) -> None:
    base, aligned = rows_of("random", 1, 300)
    table = RowRules.of([parse_rule("dual:threshold=0.05")], device)
    found = compose_rows(table, base.to(device), aligned.to(device), deferral_temperature=1.7).cpu()
    expected = compose("dual:threshold=0.05", base, aligned, deferral_temperature=1.7)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
@pytest.mark.parametrize("who", [0, 1])
def test_a_bad_row_is_nan_and_its_neighbours_are_not(device: torch.device, who: int, bad: float | None) -> None:
    rows = rows_of("random", 3, 100)
    rows[who][1] = -torch.inf
    if bad is not None:
        rows[who][1, 5:] = 0.0
        rows[who][1, 7] = bad
    for rule in ("dual", "primal", "aligned_only", "base_only"):
        found = compose_rows(RowRules.of([parse_rule(rule)] * 3, device), *(row.to(device) for row in rows)).cpu()
        assert bool(found[1].isnan().all())
        assert not bool(found[[0, 2]].isnan().any())


def test_tied_tokens_share_one_fate_in_the_bisection(device: torch.device) -> None:
    log_p = torch.tensor([[0.3, 0.3, 0.2, 0.1, 0.1]]).log().to(device)
    aligned = torch.zeros_like(log_p)
    for budget in (0.65, 0.15):
        rule = parse_rule(f"primal:budget={budget}")
        found = compose_rows(RowRules.of([rule], device), log_p, aligned).cpu()
        torch.testing.assert_close(found, compose(rule, log_p.cpu(), aligned.cpu()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_primal_tells_neighbouring_logits_apart(device: torch.device, dtype: torch.dtype) -> None:
    """Three logits next to each other in their type, p a third each: a budget of 0.4 defers the least one alone."""
    bits = {torch.float32: torch.int32}.get(dtype, torch.int16)
    first = torch.tensor([[3.0, 0.7], [-3.0, -0.7]], dtype=dtype).reshape(4, 1).view(bits)
    steps = torch.tensor([0, 1, 2], dtype=bits)  # away from zero
    base = (first + steps).view(dtype)
    base = torch.where(base > 0, base.flip(-1), base)  # the largest first
    rule, aligned = parse_rule("primal:budget=0.4"), torch.tensor([[0.0, 1.0, 2.0]], dtype=dtype).expand(4, 3)
    found = compose_rows(RowRules.of([rule], device), base.to(device), aligned.contiguous().to(device)).cpu()
    expected = compose(rule, base.double(), aligned.double())
    assert bool((base[:, :-1] > base[:, 1:]).all())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    assert bool((expected[:, 2].exp() < 0.3).all())


def test_what_the_kernel_refuses() -> None:
    table = RowRules.of([parse_rule("dual")])
    with pytest.raises(LogitsError, match="must be rows"):
        compose_rows(table, torch.zeros(1, 5, dtype=torch.float64), torch.zeros(1, 5))
    with pytest.raises(VocabularyError, match="Rows of 9 tokens"):
        compose_rows(table, torch.zeros(1, 5), torch.zeros(1, 5), vocab_size=9)
    assert not usable(torch.zeros(1, 5))


def test_bytes_are_within_the_aim() -> None:
    moved, least = bytes_moved(151_936, 2)
    assert least == 151_936 * 8
    assert moved <= 1.8 * least


_COMPILE = """
import itertools, json, triton
from triton.backends.compiler import GPUTarget
from kad.method.kernels.log_pi import log_pi_kernel
from kad.method.kernels.dispatch import BLOCK, WARPS
for capability, (dtype, bits) in itertools.product((80, 90), {"bf16": 16, "fp16": 20, "fp32": 32}.items()):
    types = {"out": "*fp32", "base": "*" + dtype, "aligned": "*" + dtype, "rules": "*fp32", "base_stride": "i32",
             "aligned_stride": "i32", "rules_stride": "i32", "vocab": "i32", "scale": "fp32", "BITS": "constexpr",
             "BLOCK": "constexpr"}
    source = triton.compiler.ASTSource(log_pi_kernel, types, {"BITS": bits, "BLOCK": BLOCK})
    found = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": WARPS})
    target = found.asm["ptx"].split(".target")[1][:8].strip()
    print(json.dumps({"for": [capability, dtype], "cubin": len(found.asm["cubin"]), "target": target}))
"""


@pytest.mark.slow
def test_it_compiles_ahead_of_time() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE], capture_output=True, text=True, check=False,
        env={key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 6
    for compiled in found:
        assert f"sm_{compiled['for'][0]}" in compiled["target"]
        assert compiled["cubin"] > 0

"""No look at a value and static shapes, without a device: fake tensors have none, and every look at one raises.

The code is told that it is being compiled, so it takes the way that it takes on a GPU. (A fake GPU itself needs a
PyTorch that was built for one.)
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import kad
from kad.method.composition import acceptance, compose, composed, deferred_mass, origin_shares
from kad.method.speculation.randomness import TorchRandomness
from kad.method.verification import Target, verify_block, verify_greedy, verify_tokens
from kad.rules import CascadeRule, RowRules, Rule, registry

VOCAB = 4999


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with FakeTensorMode(allow_non_fake_inputs=False):
        yield torch.device("cpu")


def logits(device: torch.device, *shape: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.empty(*shape, VOCAB, device=device, dtype=dtype) for _ in range(3)]


def every_quantity(rule: Rule, rows: list[torch.Tensor]) -> list[torch.Tensor]:
    found = [compose(rule, *rows), acceptance(rule, *rows)]
    if isinstance(rule, CascadeRule):
        found += [deferred_mass(rule, *rows[:2]), *origin_shares(rule, *rows[:2])]
    return found


def test_the_guard_sees_a_look(gpu: torch.device) -> None:
    with pytest.raises(DataDependentOutputException):
        bool(torch.empty(3, device=gpu).isnan().any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", registry())
def test_no_rule_looks(gpu: torch.device, name: str, dtype: torch.dtype) -> None:
    for shape in ((1,), (8,), (2, 3)):
        rows = logits(gpu, *shape, dtype=dtype)
        for found in every_quantity(registry()[name](), rows):
            assert type(found).__name__ == "FakeTensor"
            assert found.shape[: len(shape)] == shape
        warm = kad.Composition(registry()[name](), 1.5)
        assert compose(warm, *rows).dtype == torch.float32


def test_a_rule_for_each_row_does_not_look(gpu: torch.device) -> None:
    used = frozenset({"base", "aligned", "shift", "budget", "whole"})
    table = RowRules(torch.empty(4, 5, dtype=torch.float64, device=gpu), used)
    picked = table[torch.empty(6, dtype=torch.long, device=gpu)]
    for found in every_quantity(picked, logits(gpu, 6)):
        assert found.shape[0] == 6


@pytest.mark.parametrize("window", [1, 2, 8])
def test_no_verifier_looks(gpu: torch.device, window: int) -> None:
    randomness = TorchRandomness()
    base, aligned, _ = logits(gpu, window)
    bonus, _, _ = logits(gpu, window + 1)
    q, drafts = aligned.softmax(-1), torch.empty(window, dtype=torch.long, device=gpu)
    kept, alpha = composed(kad.Composition(kad.rules.Dual()), bonus, bonus).cascade()
    targets = [Target(kept, alpha, q, drafts), Target(base.softmax(-1), torch.zeros_like(base[:, 0]), q, drafts)]
    for target in targets:
        for verifier in (verify_tokens, verify_block):
            accepted, scale = verifier(target, randomness)
            weights = target.follow(accepted, scale)
            assert weights.shape == (VOCAB + 1,)
            assert randomness.draw(weights).shape == ()
    assert verify_greedy(base.argmax(-1), drafts).shape == (1,)

"""vLLM's verification of drafts, with and without our replacement for the part that its CPU build gets wrong."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.platforms import current_platform
from vllm.v1.sample import rejection_sampler

from kad.engines.vllm.plugin import runner

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="about vLLM's CPU build")
ROWS, VOCAB = 20_000, 6


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    current_platform.import_kernels()
    current_platform.register_triton_kernel_overrides()


@pytest.mark.parametrize(
    ("values", "replaced", "expected"),
    [
        ([0.7, 0.0, 1.3], (0, 1), [0.7, 0.7, 1.3]),
        ([0.0, 5.0, 0.5], (0, 1), [1.0, 1.0, 0.5]),
        ([3, 4, 5], (0, 0), [3, 3, 5]),
    ],
)
def test_parameters_are_repeated_for_each_drafted_token(
    values: list[Any], replaced: tuple[int, int], expected: list[Any]
) -> None:
    got = runner._expand(torch.tensor(values), torch.tensor([2, 2, 3], dtype=torch.int32), 3, *replaced)
    assert torch.equal(got, torch.tensor(expected))


def test_the_probe_tells_a_right_expansion_from_a_wrong_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejection_sampler, "expand_batch_to_tokens", runner._expand)
    assert runner._expands_right()
    monkeypatch.setattr(rejection_sampler, "expand_batch_to_tokens", lambda x, counts, n, *_: x.new_full((n,), 1e-9))
    assert not runner._expands_right()


@pytest.mark.parametrize("with_draft_probabilities", [True, False])
def test_verified_tokens_follow_the_target(monkeypatch: pytest.MonkeyPatch, with_draft_probabilities: bool) -> None:
    """Two drafted positions per request: the output is distributed as the target at the request's temperature."""
    monkeypatch.setattr(rejection_sampler, "expand_batch_to_tokens", runner._expand)
    torch.manual_seed(0)
    logits = torch.randn(2, VOCAB) * 2
    draft = (torch.randn(2, VOCAB) * 2).softmax(-1)
    temperature = torch.tensor([0.5, 2.0]).repeat(ROWS // 2)
    drafted = torch.stack([torch.multinomial(row, ROWS, replacement=True) for row in draft], dim=-1)
    if not with_draft_probabilities:
        drafted = draft.argmax(-1).expand(ROWS, 2)
    counts = torch.arange(2, 2 * ROWS + 1, 2, dtype=torch.int32)
    metadata = SimpleNamespace(
        all_greedy=False, all_random=True, temperature=temperature, top_k=None, top_p=None, generators={}
    )
    target = rejection_sampler.apply_sampling_constraints(logits.repeat(ROWS, 1), counts, metadata)
    tokens = rejection_sampler.rejection_sample(
        drafted.reshape(-1).to(torch.int32).contiguous(),
        [2] * ROWS,
        2,
        counts,
        draft.repeat(ROWS, 1) if with_draft_probabilities else None,
        target,
        torch.zeros(ROWS, 1, dtype=torch.int32),
        metadata,
    )
    for start, degree in enumerate((0.5, 2.0)):
        rows = tokens[start::2]
        for position in range(2):
            reached = rows[rows[:, position] >= 0, position]
            frequencies = torch.bincount(reached.long(), minlength=VOCAB) / len(reached)
            exact = (logits[position] / degree).softmax(-1)
            error = (exact * (1 - exact) / len(reached)).sqrt() + 1e-6
            assert ((frequencies - exact).abs() / error).max() < 5


def test_top_k_without_drafts() -> None:
    """A step that verifies no draft has no drafted row; vLLM's CPU code then takes the largest `top_k` of none."""
    if current_platform.is_cpu():
        with pytest.raises(RuntimeError):
            rejection_sampler.apply_top_k_top_p(torch.empty(0, VOCAB), torch.empty(0, dtype=torch.int32), None)
    apply = runner._skipping_no_rows(rejection_sampler.apply_top_k_top_p)
    assert apply(torch.empty(0, VOCAB), torch.empty(0, dtype=torch.int32), None).shape == (0, VOCAB)
    kept = apply(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([2], dtype=torch.int32), None)
    assert kept.tolist() == [[-torch.inf, 3.0, 2.0]]

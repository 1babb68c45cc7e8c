"""Heads of rows found block by block, against sorting and comparing everything."""

from __future__ import annotations

import pytest
import torch

import kad
from kad.errors import LogitsError
from kad.method.distribution import Distribution, columns_above, first_max


def rows_of(kind: str, vocab: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(vocab)
    rows = torch.randn(5, vocab, generator=generator) * 3
    if kind == "ties":
        rows = rows.round()
    if kind == "inf":
        rows[torch.rand(5, vocab, generator=generator) < 0.7] = -torch.inf
        rows[:, 0] = 0.0
    if kind == "saturated":
        rows[:, vocab // 2] = 200.0
    return rows


@pytest.mark.parametrize("kind", ["random", "ties", "inf", "saturated"])
@pytest.mark.parametrize("vocab", [1, 7, 127, 128, 257, 1000, 50_257, 49_152])
def test_blocks_find_what_the_whole_row_holds(kind: str, vocab: int) -> None:
    logits = rows_of(kind, vocab)
    assert first_max(logits).tolist() == logits.argmax(dim=-1).tolist()
    for cutoff in (torch.full((5,), torch.inf), logits.amax(-1), torch.tensor([9.0, 2.0, 0.0, torch.inf, -torch.inf])):
        columns = columns_above(logits, cutoff)
        if columns is None:
            continue
        outside = torch.ones(vocab, dtype=torch.bool).index_fill(0, columns, False)
        assert not bool((logits >= cutoff.unsqueeze(-1))[:, outside].any())
        assert columns.unique().shape == columns.shape
    assert vocab != 49_152 or columns_above(logits, logits.amax(-1)) is not None


def test_the_normalizer_is_logsumexp_in_every_precision() -> None:
    logits = rows_of("random", 1000)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        distribution = Distribution.of(logits.to(dtype))
        exact = logits.to(dtype).double().logsumexp(-1)
        assert distribution.log_z.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(distribution.log_z.double(), exact, atol=5e-6, rtol=0)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ([0.0, float("nan"), 1.0], "row 1 has NaN at token 1"),
        ([0.0, 0.0, float("inf")], r"row 1 has \+inf at token 2"),
        ([float("-inf")] * 3, "row 1 has no finite entry: every token has probability zero"),
    ],
)
def test_rows_that_are_no_distribution_are_refused(row: list[float], problem: str) -> None:
    rows = torch.tensor([[0.0, 1.0, 2.0], row])
    assert Distribution.of(rows).log_max.isnan().tolist() == [False, True]
    with pytest.raises(LogitsError, match=f"base_logits of shape .*{problem}"):
        kad.compose("dual", rows, rows)


@pytest.mark.parametrize("bad", [torch.zeros(3, dtype=torch.long), torch.zeros(2, 0), torch.tensor(1.0)])
def test_tensors_that_are_no_logits_are_refused(bad: torch.Tensor) -> None:
    with pytest.raises(LogitsError, match="logits must be a float tensor of shape"):
        Distribution.of(bad)


def test_no_rows_are_fine() -> None:
    assert Distribution.of(torch.zeros(0, 5)).log_z.shape == (0,)

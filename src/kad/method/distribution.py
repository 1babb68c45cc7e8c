"""Rows of next-token distributions: logits with their log-probabilities, and the error for a bad row.

Only `problem_of` reads values, so that the host never waits for a device. A row that is not a
distribution is NaN everywhere: this is its flag. Callers use `problem_of` after they have seen a NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from kad.errors import LogitsError

# On a CPU: the entries of a buffer that stay in its caches while rows are passed over ten times; the vocabulary from
# which looking into a few blocks pays; the share of a row up to which it does.
_CACHED, _LARGE, _FEW = 1 << 18, 1 << 12, 1 / 8
_LARGEST_BLOCK, _SMALLEST_BLOCK = 256, 16


@dataclass(frozen=True, eq=False)
class Distribution:
    """Next-token distributions, one for each row. Made by `of` or `in_probabilities`.

    Attributes:
        logits: (..., vocab), float32 or float64. -inf marks a token of probability zero.
        log_max: (...,), log of the largest probability of each row.
        dense: (..., vocab), the log-probabilities if they are already computed. Use `log_probs()`.
        probabilities: (..., vocab), the probabilities if they are already computed. Use `probs()`.
    """

    logits: Tensor
    log_max: Tensor
    dense: Tensor | None = None
    probabilities: Tensor | None = None

    @classmethod
    def of(cls, logits: Tensor, name: str = "logits") -> Distribution:
        """Normalize logits (or log-probabilities) of shape (..., vocab) and any float dtype, without reading them.

        Half precision becomes float32, and float64 stays. A row with NaN, +inf or no finite entry becomes NaN.

        Raises:
            LogitsError: not a float tensor, or an empty vocabulary.
        """
        logits = raised(logits, name)
        dense = torch.log_softmax(logits, dim=-1)
        return cls(logits, dense.amax(dim=-1), dense)

    @classmethod
    def in_probabilities(cls, logits: Tensor) -> Distribution:
        """As `of`, for callers that need probabilities."""
        probabilities = torch.softmax(logits, dim=-1)
        return cls(logits, probabilities.amax(dim=-1).log(), probabilities=probabilities)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self.logits.shape[-1]

    @cached_property
    def max_logit(self) -> Tensor:
        """(...,), the largest logit of each row."""
        return self.logits.amax(dim=-1)

    @cached_property
    def log_z(self) -> Tensor:
        """(...,), the normalizer: log p_v = logits_v - log_z. Computed at the largest entry, where nothing cancels."""
        return self.max_logit - self.log_max

    def log_probs(self) -> Tensor:
        """(..., vocab), the dense log-probabilities."""
        return self.logits - self.log_z.unsqueeze(-1) if self.dense is None else self.dense

    def probs(self) -> Tensor:
        """(..., vocab), the dense probabilities."""
        return self.log_probs().exp() if self.probabilities is None else self.probabilities

    def without_last(self) -> tuple[Distribution, Tensor]:
        """The rows without their last entry, not normalized again, and the log-probability (..., 1) of that entry."""
        rest = self.logits[..., -1:] - self.log_z.unsqueeze(-1) if self.dense is None else self.dense[..., -1:]
        dense, probabilities = (None if x is None else x[..., :-1] for x in (self.dense, self.probabilities))
        logits = self.logits[..., :-1].contiguous()
        return Distribution(logits, logits.amax(dim=-1) - self.log_z, dense, probabilities), rest


def raised(logits: Tensor, name: str = "logits") -> Tensor:
    """Logits (..., vocab) in float32 or float64.

    Raises:
        LogitsError: an array of another library, not a float tensor, or no tokens.
    """
    if not isinstance(logits, Tensor):
        raise LogitsError(
            f"{name} must be a torch.Tensor, but is {type(logits).__module__}.{type(logits).__name__}. "
            "Make one of it: torch.as_tensor(...)."
        )
    if not logits.is_floating_point() or logits.ndim == 0 or logits.shape[-1] == 0:
        raise LogitsError(
            f"{name} must be a float tensor of shape (..., vocab), "
            f"but is {logits.dtype} of shape {tuple(logits.shape)}."
        )
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def precise(device: torch.device) -> torch.dtype:
    """The dtype for long sums and for random decisions: float64 if the device has it (Apple's does not)."""
    return torch.float32 if device.type == "mps" else torch.float64


def may_look(rows: Tensor) -> bool:
    """Whether reading a value costs nothing: on a CPU, unless the code is being compiled."""
    return rows.device.type == "cpu" and not torch.compiler.is_compiling()


def row_blocks(rows: Tensor) -> list[slice]:
    """Slices of rows (n, vocab) to work on in turn: on a CPU as many rows as its caches hold, else all rows."""
    if not may_look(rows) or rows.numel() <= _CACHED:
        return [slice(None)]
    step = max(1, _CACHED // rows.shape[-1])
    return [slice(start, start + step) for start in range(0, rows.shape[0], step)]


def first_max(rows: Tensor) -> Tensor:
    """argmax of rows (..., vocab), (...,). Of equal entries the first. On a CPU by blocks, because `argmax` is slow."""
    blocks = in_blocks(rows)
    if blocks is None:
        return rows.argmax(dim=-1)
    block = blocks.amax(dim=-1).argmax(dim=-1, keepdim=True).unsqueeze(-1)
    inside = blocks.gather(-2, block.expand(*block.shape[:-1], blocks.shape[-1])).argmax(dim=-1, keepdim=True)
    return (block * blocks.shape[-1] + inside).squeeze((-2, -1))


def columns_above(rows: Tensor, cutoff: Tensor) -> Tensor | None:
    """On a CPU, the tokens of the blocks in which a row (n, vocab) reaches its cutoff (n,), if these are few."""
    blocks = in_blocks(rows)
    if blocks is None:
        return None
    hit = (blocks.amax(dim=-1) >= cutoff.unsqueeze(-1)).any(dim=0).nonzero()
    size = blocks.shape[-1]
    few = hit.shape[0] * size <= _FEW * rows.shape[-1]
    return (hit * size + torch.arange(size)).reshape(-1) if few else None


def in_blocks(rows: Tensor) -> Tensor | None:
    """Rows (..., vocab) as (..., blocks, size) on a CPU, where the vocabulary is large and can be divided."""
    vocab = rows.shape[-1]
    if not may_look(rows) or vocab < _LARGE or rows.requires_grad or not rows.is_contiguous():
        return None
    size = _block_size(vocab)
    return None if size is None else rows.view(*rows.shape[:-1], vocab // size, size)


@cache
def _block_size(vocab: int) -> int | None:
    sizes = range(_LARGEST_BLOCK, _SMALLEST_BLOCK - 1, -1)
    return next((size for size in sizes if vocab % size == 0), None)


def refuse(name: str, logits: Tensor) -> None:
    """Raise the LogitsError of `problem_of`, if a row is bad."""
    if problem := problem_of(name, logits):
        raise LogitsError(problem)


def problem_of(name: str, logits: Tensor) -> str | None:
    """What is wrong with the first bad row of `logits` (..., vocab). None if all rows are distributions."""
    rows = logits.reshape(-1, logits.shape[-1])
    bad = torch.log_softmax(raised(rows), dim=-1)[:, 0].isnan()
    if not bool(bad.any()):
        return None
    index = int(bad.nonzero()[0, 0])
    row = rows[index]
    if bool(row.isnan().any()):
        problem = f"NaN at token {int(row.isnan().nonzero()[0, 0])}"
    elif bool((row == torch.inf).any()):
        problem = f"+inf at token {int((row == torch.inf).nonzero()[0, 0])}"
    else:
        problem = "no finite entry: every token has probability zero"
    return (
        f"{name} of shape {tuple(logits.shape)}: row {index} has {problem}. "
        "Entries must be finite or -inf, with at least one finite in each row."
    )

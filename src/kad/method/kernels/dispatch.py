"""When the kernel runs, what it is called with, and how many bytes it moves."""

from __future__ import annotations

from functools import cache, lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from kad.errors import LogitsError, VocabularyError
from kad.method.rules import RowRules, Rule

# Entries that one program holds at a time, and its warps; compiled for sm_80 and sm_90 no register spills.
BLOCK, WARPS = 8192, 32


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


def usable(logits: Tensor) -> bool:
    """Whether the kernel can compose rows like these: CUDA, Triton, and half or single precision."""
    return logits.device.type == "cuda" and logits.dtype in _TYPES and not logits.requires_grad and _installed()


def takes(rule: Rule, *logits: Tensor) -> bool:
    """Whether the kernel can compose these rows, of one shape, under `rule`."""
    tensors = all(isinstance(rows, Tensor) and usable(rows) for rows in logits)
    known = isinstance(rule, RowRules) or RowRules.takes(rule)
    return tensors and known and len({rows.shape for rows in logits}) == 1


def compose_rows(
    rules: Rule,
    base_logits: Tensor,
    aligned_logits: Tensor,
    *,
    vocab_size: int | None = None,
    deferral_temperature: float = 1.0,
) -> Tensor:
    """log pi of rows under a threshold rule for each row, in one launch.

    Args:
        rules: a threshold rule that `RowRules` takes, or `RowRules` with as many rules as there are rows.
        base_logits: (rows, at least `vocab_size`), float32, bfloat16 or float16; rows may be padded, entries of a row
            stand side by side.
        aligned_logits: the same number of rows, likewise.
        vocab_size: the common vocabulary; what stands behind it is padding. None: all of it.
        deferral_temperature: the logits are divided by it.

    Returns:
        (rows, vocab_size), float32; a row that is no distribution is NaN. Nothing is looked at.

    Raises:
        LogitsError: logits of another dtype or that are no rows. VocabularyError: too narrow rows.
    """
    from kad.method.kernels.log_pi import log_pi_kernel

    vocab = min(base_logits.shape[-1], aligned_logits.shape[-1]) if vocab_size is None else vocab_size
    for name, logits in (("base_logits", base_logits), ("aligned_logits", aligned_logits)):
        if logits.ndim != 2 or logits.stride(-1) != 1 or logits.dtype not in _TYPES:
            raise LogitsError(
                f"{name} must be rows (rows, vocab) of float32, bfloat16 or float16 with entries side by side, but is "
                f"{logits.dtype} of shape {tuple(logits.shape)} and strides {logits.stride()}."
            )
    rows = base_logits.shape[0]
    if aligned_logits.shape[0] != rows or min(base_logits.shape[-1], aligned_logits.shape[-1]) < vocab:
        raise VocabularyError(
            f"Rows of {vocab} tokens were asked for, but got base_logits {tuple(base_logits.shape)} and aligned_logits "
            f"{tuple(aligned_logits.shape)}."
        )
    out = torch.empty(rows, vocab, dtype=torch.float32, device=base_logits.device)
    numbers = _numbers(rules, base_logits.device)
    if len(numbers) not in (1, rows):
        raise VocabularyError(f"There are {rows} rows, but {len(numbers)} rules. Give one rule, or one for each row.")
    if rows:
        log_pi_kernel[(rows,)](
            out, base_logits, aligned_logits, numbers, base_logits.stride(0), aligned_logits.stride(0),
            numbers.shape[1] if len(numbers) == rows else 0, vocab, 1.0 / deferral_temperature,
            BITS=_TYPES[base_logits.dtype], BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return out


def _numbers(rules: Rule, device: torch.device) -> Tensor:
    """The rules in numbers (1 or rows, 5), float32."""
    return rules.numbers.to(torch.float32).contiguous() if isinstance(rules, RowRules) else _one_rule(rules, device)


@lru_cache(maxsize=64)
def _one_rule(rule: Rule, device: torch.device) -> Tensor:
    return RowRules.of([rule], device).numbers.to(torch.float32)


def bytes_moved(vocab: int, itemsize: int, *, primal: bool = False, cached: bool = True) -> tuple[int, int]:
    """Bytes that one row moves through memory, and the least that any program must move.

    The least is reading p and q* once and writing float32 log pi. The kernel reads p three times (normaliser, deferred
    mass, result; under `primal` 8 to 16 times more, once for two bits of a logit) and q* twice. A row that is read
    again at once lies in the L2 cache: 152,000 tokens in bfloat16 are 0.3 MB, 132 rows at a time are 40 MB.

    Args:
        vocab: the number of tokens.
        itemsize: bytes of a logit.
        primal: whether a row goes by `primal`.
        cached: whether what is read again comes from the cache.
    """
    least = vocab * (2 * itemsize + 4)
    search = (16 if itemsize == 4 else 10) if primal else 0
    again = 0 if cached else vocab * itemsize * (search + 3)
    return least + again, least


# How many bits, from the sign on, tell two logits apart; an even number of them.
_TYPES = {torch.float32: 32, torch.bfloat16: 16, torch.float16: 20}

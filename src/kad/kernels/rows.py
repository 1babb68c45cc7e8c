"""The kernel: one program a row. Online maximum and sum of p and q*, the cutoff, the deferred mass, log pi.

It is the closed form of `kad.rules.threshold` and the formulation of `kad.composed`, a block of tokens at a time: each
pass reads the row again, from the cache. `primal` has its cutoff by bisection over the bits of the logit: 32 sums of
p over the tokens above a guess, exact, with no sort, and equal logits share one fate.
"""

from __future__ import annotations

import triton
import triton.language as tl

_EXCLUDED = tl.constexpr(-1e4)


@triton.jit
def _block(row, start, vocab, scale, BLOCK: tl.constexpr):
    """Tokens start .. start + BLOCK of a row as float32, and which of them exist."""
    at = start + tl.arange(0, BLOCK)
    inside = at < vocab
    return tl.load(row + at, mask=inside, other=float("-inf")).to(tl.float32) * scale, inside


@triton.jit
def _max_and_log_sum(row, vocab, scale, BLOCK: tl.constexpr):
    """The largest logit of a row, and its normaliser; NaN for a row that is no distribution."""
    top = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    bad = tl.zeros((), tl.float32)
    for start in range(0, vocab, BLOCK):
        x, inside = _block(row, start, vocab, scale, BLOCK)
        bad += tl.sum(((x != x) | (x == float("inf"))).to(tl.float32))
        new = tl.maximum(top, tl.max(x))
        # Before the first finite entry everything is -inf, and there is nothing to sum.
        safe = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(top - safe) + tl.sum(tl.where(inside, tl.exp(x - safe), 0.0))
        top = new
    log_z = top + tl.log(total)
    return top, tl.where((bad > 0.0) | (top == float("-inf")), float("nan"), log_z)


@triton.jit
def _key(x):
    """An int32 in the order of the floats."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _mass_from(row, key, log_z, vocab, scale, BLOCK: tl.constexpr):
    """The mass of p on the tokens whose key is at least `key`."""
    mass = tl.zeros((), tl.float32)
    for start in range(0, vocab, BLOCK):
        x, inside = _block(row, start, vocab, scale, BLOCK)
        mass += tl.sum(tl.where(inside & (_key(x) >= key), tl.exp(x - log_z), 0.0))
    return mass


@triton.jit
def _critical_key(row, budget, log_z, vocab, scale, BLOCK: tl.constexpr):
    """The largest key from which on p has a mass of 1 - budget: that of the critical item."""
    # Bisection over all int32, as the sum low + 2^31 would not fit: bit by bit from the sign down.
    low = tl.full((), -2147483648, tl.int64)
    for bit in range(32):
        guess = low + (tl.full((), 1, tl.int64) << (31 - bit))
        # Rounding may leave the whole row short of 1 - budget: then all is kept, from the lowest key on.
        reached = _mass_from(row, guess, log_z, vocab, scale, BLOCK) >= 1.0 - budget
        low = tl.where(reached, guess, low)
    return low


@triton.jit
def log_pi_kernel(
    out, base, aligned, rules, base_stride, aligned_stride, rules_stride, vocab, scale, BLOCK: tl.constexpr
):  # fmt: skip
    """log pi of one row; arguments as `kad.kernels.compose_rows`, `rules` (rows, 5) being `RowRules.numbers`.

    One rule for all rows has a stride of 0.
    """
    row = tl.program_id(0).to(tl.int64)
    base += row * base_stride
    aligned += row * aligned_stride
    out += row * vocab
    rules += row * rules_stride
    anchor, shift = tl.load(rules), tl.load(rules + 1)
    offset, whole, budget = tl.load(rules + 2), tl.load(rules + 3), tl.load(rules + 4)

    top, log_z = _max_and_log_sum(base, vocab, scale, BLOCK)
    aligned_top, aligned_log_z = _max_and_log_sum(aligned, vocab, scale, BLOCK)
    log_max, aligned_log_max = top - log_z, aligned_top - aligned_log_z

    cutoff = tl.where(anchor == 1.0, top, tl.where(anchor == 2.0, log_z + aligned_log_max, log_z))
    log_anchor = tl.where(anchor == 1.0, log_max, tl.where(anchor == 2.0, aligned_log_max, 0.0))
    cutoff += tl.log(tl.maximum(1.0 + shift * tl.exp(-log_anchor), 0.0))
    cutoff += offset
    cutoff = tl.where(whole > 0.0, tl.where(top >= cutoff, float("-inf"), float("inf")), cutoff)
    lowest = tl.full((), -2147483648, tl.int64)
    if budget >= 0.0:
        lowest = _critical_key(base, budget, log_z, vocab, scale, BLOCK)
        cutoff = tl.full((), float("-inf"), tl.float32)

    # The deferred mass as a log, online like the normaliser: it may lie far below what a float holds.
    rest = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    for start in range(0, vocab, BLOCK):
        x, inside = _block(base, start, vocab, scale, BLOCK)
        kept = (x >= cutoff) & (_key(x) >= lowest)
        log_p = tl.where(kept | (inside == 0), float("-inf"), x - log_z)
        new = tl.maximum(rest, tl.max(log_p))
        safe = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(rest - safe) + tl.sum(tl.exp(log_p - safe))
        rest = new
    log_alpha = tl.where(rest == float("-inf"), _EXCLUDED, rest + tl.log(total))
    log_alpha = tl.maximum(log_alpha, _EXCLUDED)

    flag = (log_z - log_z) + (aligned_log_z - aligned_log_z)  # 0, or NaN for a row that is no distribution
    for start in range(0, vocab, BLOCK):
        x, inside = _block(base, start, vocab, scale, BLOCK)
        y, _ = _block(aligned, start, vocab, scale, BLOCK)
        kept = (x >= cutoff) & (_key(x) >= lowest)
        first = x - log_z + tl.where(kept, 0.0, _EXCLUDED)
        second = y - aligned_log_z + log_alpha
        larger = tl.maximum(first, second)
        smaller = tl.minimum(first, second)
        both = tl.where(larger == float("-inf"), larger, larger + tl.log(1.0 + tl.exp(smaller - larger)))
        tl.store(out + start + tl.arange(0, BLOCK), both + flag, mask=inside)

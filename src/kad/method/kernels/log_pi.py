"""The kernel: one program a row. Online maximum and sum of p and q*, the cutoff, the deferred mass, log pi.

It is the closed form of `kad.method.rules.threshold` and the formulation of `kad.method.composed`, a block of tokens
at a time: each pass reads the row again, from the cache. `primal` has its cutoff by a search over the bits of the
logit, two at a time: sums of p over the tokens above three guesses, exact, with no sort, and equal logits share one
fate.
"""

from __future__ import annotations

import triton
import triton.language as tl

_EXCLUDED = tl.constexpr(-1e4)
_FAR = tl.constexpr(64.0)


@triton.jit
def _block(row, start, vocab, BLOCK: tl.constexpr):
    """Tokens start .. start + BLOCK of a row as float32, and which of them exist."""
    at = start + tl.arange(0, BLOCK)
    inside = at < vocab
    return tl.load(row + at, mask=inside, other=float("-inf")).to(tl.float32), inside


@triton.jit
def _add(top, total, x, scale):
    """Each lane's running maximum and its sum of exp((x - maximum) scale), with one more x; lanes meet at the end."""
    new = tl.maximum(top, x)
    # Before the first finite entry everything is -inf, and there is nothing to sum.
    safe = tl.where(new == float("-inf"), 0.0, new)
    return new, total * tl.exp((top - safe) * scale) + tl.exp((x - safe) * scale)


@triton.jit
def _log_sum(top, total, scale):
    """The maximum of all lanes, and above it the log of their sum; -inf where there was nothing."""
    largest = tl.max(top)
    safe = tl.where(largest == float("-inf"), 0.0, largest)
    return largest, tl.log(tl.sum(total * tl.exp((top - safe) * scale)))


@triton.jit
def _max_and_log_sum(row, vocab, scale, BLOCK: tl.constexpr):
    """What is taken off a row (see `at_temperature`), then its largest entry, and its normaliser; NaN for a bad row."""
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    bad = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, vocab, BLOCK):
        x, _ = _block(row, start, vocab, BLOCK)
        bad |= ((x != x) | (x == float("inf"))).to(tl.int32)
        top, total = _add(top, total, x, scale)
    largest, log_sum = _log_sum(top, total, scale)
    off = tl.where((scale != 1.0) | (tl.abs(largest) > _FAR), largest, 0.0)
    log_z = (largest - off) * scale + log_sum
    return off, (largest - off) * scale, tl.where((tl.max(bad) > 0) | (largest == float("-inf")), float("nan"), log_z)


@triton.jit
def _key(x):
    """An int32 in the order of the floats."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _critical_key(row, off, budget, log_z, vocab, scale, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """The largest key from which on p has a mass of 1 - budget: that of the critical item.

    Two bits of the key at a time, from the sign down to the last of BITS bits, which tell the logits apart.
    """
    low = tl.full((), -2147483648, tl.int64)  # sums of int32 might not fit on the way
    for step in range(BITS // 2):
        quarter = tl.full((), 1, tl.int64) << (30 - 2 * step)
        guess_1 = (low + quarter).to(tl.int32)
        guess_2 = (low + 2 * quarter).to(tl.int32)
        guess_3 = (low + 3 * quarter).to(tl.int32)
        mass_1 = tl.zeros((BLOCK,), tl.float32)
        mass_2 = tl.zeros((BLOCK,), tl.float32)
        mass_3 = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, vocab, BLOCK):
            x, _ = _block(row, start, vocab, BLOCK)
            key, p = _key(x), tl.exp((x - off) * scale - log_z)
            mass_1 += tl.where(key >= guess_1, p, 0.0)
            mass_2 += tl.where(key >= guess_2, p, 0.0)
            mass_3 += tl.where(key >= guess_3, p, 0.0)
        # Rounding may leave the whole row short of 1 - budget: then all is kept, from the lowest key on.
        least = 1.0 - budget
        low += quarter * (tl.sum(mass_1) >= least).to(tl.int64)
        low += quarter * (tl.sum(mass_2) >= least).to(tl.int64)
        low += quarter * (tl.sum(mass_3) >= least).to(tl.int64)
    return low.to(tl.int32)


@triton.jit
def log_pi_kernel(
    out, base, aligned, rules, base_stride, aligned_stride, rules_stride, vocab, scale, BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """log pi of one row; arguments as `kad.method.kernels.compose_rows`, `rules` (rows, 5) being `RowRules.numbers`.

    One rule for all rows has a stride of 0.
    """
    row = tl.program_id(0).to(tl.int64)
    base += row * base_stride
    aligned += row * aligned_stride
    out += row * vocab
    rules += row * rules_stride
    anchor, shift = tl.load(rules), tl.load(rules + 1)
    offset, whole, budget = tl.load(rules + 2), tl.load(rules + 3), tl.load(rules + 4)

    off, top_p, log_z = _max_and_log_sum(base, vocab, scale, BLOCK)
    aligned_off, aligned_top, aligned_log_z = _max_and_log_sum(aligned, vocab, scale, BLOCK)
    log_max, aligned_log_max = top_p - log_z, aligned_top - aligned_log_z

    cutoff = tl.where(anchor == 1.0, top_p, tl.where(anchor == 2.0, log_z + aligned_log_max, log_z))
    log_anchor = tl.where(anchor == 1.0, log_max, tl.where(anchor == 2.0, aligned_log_max, 0.0))
    cutoff += tl.log(tl.maximum(1.0 + shift * tl.exp(-log_anchor), 0.0))
    cutoff += offset
    cutoff = tl.where(whole > 0.0, tl.where(top_p >= cutoff, float("-inf"), float("inf")), cutoff)
    lowest = tl.full((), -2147483648, tl.int32)
    if budget >= 0.0:
        lowest = _critical_key(base, off, budget, log_z, vocab, scale, BITS, BLOCK)
        cutoff = tl.full((), float("-inf"), tl.float32)

    # The deferred mass as a log, online like the normaliser: it may lie far below what a float holds.
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocab, BLOCK):
        x, inside = _block(base, start, vocab, BLOCK)
        kept = ((x - off) * scale >= cutoff) & (_key(x) >= lowest)
        top, total = _add(top, total, tl.where(kept, float("-inf"), (x - off) * scale - log_z), 1.0)
    largest, log_sum = _log_sum(top, total, 1.0)
    log_alpha = tl.maximum(largest + log_sum, _EXCLUDED)

    flag = (log_z - log_z) + (aligned_log_z - aligned_log_z)  # 0, or NaN for a row that is no distribution
    for start in range(0, vocab, BLOCK):
        x, inside = _block(base, start, vocab, BLOCK)
        y, _ = _block(aligned, start, vocab, BLOCK)
        kept = ((x - off) * scale >= cutoff) & (_key(x) >= lowest)
        first = (x - off) * scale - log_z + tl.where(kept, 0.0, _EXCLUDED)
        second = (y - aligned_off) * scale - aligned_log_z + log_alpha
        larger = tl.maximum(first, second)
        smaller = tl.minimum(first, second)
        both = tl.where(larger == float("-inf"), larger, larger + tl.log(1.0 + tl.exp(smaller - larger)))
        tl.store(out + start + tl.arange(0, BLOCK), both + flag, mask=inside)

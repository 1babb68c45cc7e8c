"""Rows of next-token distributions: logits with their log-probabilities, and the error for a bad row.

A row of p may have a rest: probability that no token of q* stands for. `RowsWithRest` carries it beside the logits.
Of a row of p only the most probable tokens may be known, as a server says them: `ListedRows`.

Only `problem_of` reads values, so that the host never waits for a device. A row that is not a
distribution is NaN everywhere: this is its flag. Callers use `problem_of` after they have seen a NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from kad.errors import LogitsError, RuleError

# How far below the others a token stands in log pi that pi excludes. Its probability e^-10000 is zero in every float
# type; but where a mask (a grammar, `allowed_token_ids`) leaves excluded tokens only, their order still decides.
EXCLUDED = -1e4

NOT_AT_ONE = (
    "A server gives p at temperature 1, so deferral cannot be decided at {:g}. Leave the deferral temperature out."
)

# On a CPU: the entries of a buffer that stay in its caches while rows are passed over ten times; the vocabulary from
# which looking into a few blocks pays; the share of a row up to which it does.
_CACHED, _LARGE, _FEW = 1 << 18, 1 << 12, 1 / 8
_LARGEST_BLOCK, _SMALLEST_BLOCK = 256, 16
# Up to here the normaliser of a row is exact to 4e-6 in float32.
_FAR = 64.0


@dataclass(frozen=True, eq=False)
class RowsWithRest:
    """Rows of p with a rest, which a cascade always defers. A slice of the leading dimensions is one of the same kind.

    Attributes:
        logits: (..., vocab), the logits of the tokens.
        rest: (..., 1), the logit of the probability of p that no token of q* stands for. -inf if there is none.
    """

    logits: Tensor
    rest: Tensor

    @property
    def shape(self) -> torch.Size:
        """(..., vocab), without the rest."""
        return self.logits.shape

    @property
    def device(self) -> torch.device:
        """The device of both."""
        return self.logits.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the logits."""
        return self.logits.dtype

    def to(self, where: torch.device | str | torch.dtype) -> RowsWithRest:
        """On another device, or in another dtype."""
        return self.changed(lambda part: part.to(where))

    def changed(self, change: Callable[[Tensor], Tensor]) -> RowsWithRest:
        """The same change to all logits: another shape of the leading dimensions, dtype, place, or a shift."""
        return RowsWithRest(change(self.logits), change(self.rest))

    @classmethod
    def stacked(cls, rows: Sequence[Any]) -> RowsWithRest:
        """Rows (vocab,) as (n, vocab)."""
        return RowsWithRest(torch.stack([row.logits for row in rows]), torch.stack([row.rest for row in rows]))

    def __getitem__(self, index: Any) -> RowsWithRest:
        return RowsWithRest(self.logits[index], self.rest[index])


@dataclass(frozen=True, eq=False)
class ListedRows(RowsWithRest):
    """Rows of p of which a list of the most probable tokens is known. What all others have is in the rest.

    A cascade can be composed of such a row if it surely keeps no token outside of the list: see
    `kad.method.composed.Composed`, which asks for longer lists.

    Attributes:
        bound: (..., 1), the logit that no token outside of the list exceeds. -inf if all tokens are listed.
        place: (..., 1), the index in `longer` for each row.
        longer: whom to ask for a longer list, and for which of its rows.
    """

    bound: Tensor
    place: Tensor
    longer: tuple[tuple[Longer, int], ...]

    def changed(self, change: Callable[[Tensor], Tensor]) -> ListedRows:
        rest = change(self.rest)
        place = self.place.reshape(rest.shape).to(rest.device)
        return ListedRows(change(self.logits), rest, change(self.bound), place, self.longer)

    @classmethod
    def stacked(cls, rows: Sequence[Any]) -> ListedRows:
        logits, rest, bound = (
            torch.stack([getattr(row, name) for row in rows]) for name in ("logits", "rest", "bound")
        )
        own = tuple(row.longer[int(row.place)] for row in rows)
        return ListedRows(logits, rest, bound, torch.arange(len(rows)).unsqueeze(-1), own)

    def __getitem__(self, index: Any) -> ListedRows:
        parts = (self.logits[index], self.rest[index], self.bound[index], self.place[index])
        return ListedRows(*parts, self.longer)

    def with_longer(self, places: Sequence[int]) -> ListedRows:
        """The rows (n, vocab) at these indices of `longer`, with longer lists. Each origin is asked once for its rows.

        Raises:
            UsageError: there are none.
        """
        asked: dict[Longer, list[int]] = {}
        for place in places:
            asked.setdefault(self.longer[place][0], []).append(place)
        found: dict[int, ListedRows] = {}
        for longer, own in asked.items():
            rows = longer([self.longer[place][1] for place in own])
            found |= {place: rows[index] for index, place in enumerate(own)}
        return ListedRows.stacked([found[place] for place in places])

    def replaced(self, which: Tensor, rows: ListedRows | float) -> ListedRows:
        """The same with other rows in some places.

        Args:
            which: (...,), bool: these.
            rows: (n, vocab), the others in their order; or a logit for all entries.
        """
        made, place, longer = self.changed(torch.clone), self.place.clone(), self.longer
        if isinstance(rows, float):
            made.logits[which], made.rest[which] = rows, rows
        else:
            made.logits[which], made.rest[which], made.bound[which] = (
                part.to(self.dtype) for part in (rows.logits, rows.rest, rows.bound)
            )
            place[which] = rows.place + len(longer)
            longer = longer + rows.longer
        return ListedRows(made.logits, made.rest, made.bound, place, longer)


# Given indices of rows that it has made, it makes them again, (n, vocab), with longer lists. UsageError if it cannot.
Longer = Callable[[Sequence[int]], ListedRows]
# The logits of a model, (..., vocab). Only those of p may have a rest.
Rows = Tensor | RowsWithRest
AnyRows = TypeVar("AnyRows", bound=Rows)


def each(rows: Rows, change: Callable[[Tensor], Tensor]) -> Rows:
    """The same change to the logits and to the rest, if there is one."""
    return change(rows) if isinstance(rows, Tensor) else rows.changed(change)


def at_temperature(rows: AnyRows, temperature: float = 1.0) -> AnyRows:
    """Rows (..., vocab) over a temperature. What is the same in a whole row, and makes no probability, is taken off.

    A float has seven digits. Those of a normaliser of 1e5, or of logits over a temperature of 0.01, would be gone
    before the point. So the largest entry is subtracted first, where it is far from 0 or where there is a temperature.

    Raises:
        RuleError: a temperature, and rows of which only a list of tokens is known: it is that of temperature 1.
    """
    if temperature != 1.0 and isinstance(rows, ListedRows):
        raise RuleError(NOT_AT_ONE.format(temperature))
    top = joined(rows).detach().amax(dim=-1, keepdim=True)
    if temperature != 1.0:
        return cast("AnyRows", each(rows, lambda part: (part - top) / temperature))
    if may_look(top):
        top = torch.where(top.abs() > _FAR, top, 0.0)
        if not bool(top.any()):
            return rows
    return cast("AnyRows", each(rows, lambda part: part - top))


def joined(rows: Rows) -> Tensor:
    """The rows as one tensor: (..., vocab), or (..., vocab + 1) with the rest as the last entry."""
    return rows if isinstance(rows, Tensor) else torch.cat((rows.logits, rows.rest), dim=-1)


def stacked(rows: Sequence[Rows]) -> Rows:
    """Rows (vocab,) of one kind as (n, vocab)."""
    kind = type(rows[0])
    if issubclass(kind, RowsWithRest):
        return kind.stacked(rows)
    return torch.stack([row for row in rows if isinstance(row, Tensor)])


def move_to_rest(rows: Rows, tokens: Tensor, deferral_temperature: float = 1.0) -> RowsWithRest:
    """Rows of p that never keep some tokens: what p gives to these tokens belongs to the rest.

    Args:
        rows: (..., vocab), logits of p.
        tokens: (..., vocab) or (vocab,), bool.
        deferral_temperature: that of the composition, because each token has its share at that temperature.

    Returns:
        (..., vocab), logits. The tokens stand 10,000 below their place: their probability is zero.
    """
    rows = at_temperature(raised_rows(rows), deferral_temperature)
    logits = rows if isinstance(rows, Tensor) else rows.logits
    never = tokens.to(logits.dtype)
    # The other tokens are lowered as far in the sum of the rest, where they then count for nothing.
    moved = torch.add(logits, 1.0 - never, alpha=EXCLUDED).logsumexp(dim=-1, keepdim=True)
    if isinstance(rows, RowsWithRest):
        moved = torch.logaddexp(moved, rows.rest)
    lowered = RowsWithRest(torch.add(logits, never, alpha=EXCLUDED), moved)
    return RowsWithRest(deferral_temperature * lowered.logits, deferral_temperature * lowered.rest)


def move_to_token(rows: RowsWithRest, tokens: Tensor, to: int, deferral_temperature: float = 1.0) -> RowsWithRest:
    """Rows of p in which one token has what p gives to some tokens. Arguments as `move_to_rest`.

    Args:
        rows: (..., vocab), logits of p.
        tokens: (..., vocab) or (vocab,), bool.
        to: the one token. What it has itself is lost, unless it is one of `tokens`.
        deferral_temperature: that of the composition.
    """
    moved = move_to_rest(rows.logits, tokens, deferral_temperature)
    moved.logits[..., to : to + 1] = moved.rest
    return RowsWithRest(moved.logits, rows.rest)


def lowered(logits: Tensor, tokens: Sequence[int], deferral_temperature: float = 1.0) -> Tensor:
    """Logits (..., vocab) in which some tokens stand 10,000 below their place: their probability is zero."""
    logits = logits.clone()
    logits[..., list(tokens)] += deferral_temperature * EXCLUDED
    return logits


@dataclass(frozen=True, eq=False)
class Distribution:
    """Next-token distributions, one for each row. Made by `of` or `in_probabilities`.

    Attributes:
        logits: (..., vocab), float32 or float64. -inf marks a token of probability zero.
        log_max: (...,), log of the largest probability of each row.
        dense: (..., vocab), the log-probabilities if they are already computed. Use `log_probs()`.
        probabilities: (..., vocab), the probabilities if they are already computed. Use `probs()`.
        log_rest: (..., 1), the log-probability of the rest, if the rows have one. The tokens have the others.
        listed: the rows, if only a list of their tokens is known.
    """

    logits: Tensor
    log_max: Tensor
    dense: Tensor | None = None
    probabilities: Tensor | None = None
    log_rest: Tensor | None = None
    listed: ListedRows | None = None

    @classmethod
    def of(cls, rows: Rows, name: str = "logits") -> Distribution:
        """Normalize logits (or log-probabilities) of shape (..., vocab) and any float dtype, without reading them.

        Half precision becomes float32, and float64 stays. A row with NaN, +inf or no finite entry becomes NaN.

        Raises:
            LogitsError: not a float tensor, or an empty vocabulary.
        """
        rows = raised_rows(rows, name)
        if not isinstance(rows, Tensor):
            return cls.of(joined(rows))._without_rest(rows)
        dense = torch.log_softmax(rows, dim=-1)
        return cls(rows, dense.amax(dim=-1), dense)

    @classmethod
    def in_probabilities(cls, rows: Rows) -> Distribution:
        """As `of`, for callers that need probabilities."""
        if not isinstance(rows, Tensor):
            return cls.in_probabilities(joined(rows))._without_rest(rows)
        probabilities = torch.softmax(rows, dim=-1)
        return cls(rows, probabilities.amax(dim=-1).log(), probabilities=probabilities)

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
        log_z = self.max_logit - self.log_max
        # Where all of p is in the rest, every token has probability zero.
        return log_z if self.log_rest is None else torch.where(self.log_max == -torch.inf, torch.inf, log_z)

    def log_probs(self) -> Tensor:
        """(..., vocab), the dense log-probabilities."""
        return self.logits - self.log_z.unsqueeze(-1) if self.dense is None else self.dense

    def probs(self) -> Tensor:
        """(..., vocab), the dense probabilities."""
        return self.log_probs().exp() if self.probabilities is None else self.probabilities

    def _without_rest(self, rows: RowsWithRest) -> Distribution:
        """The tokens of rows whose last entry is the rest. They are not normalized again."""
        dense, probabilities = (None if x is None else x[..., :-1] for x in (self.dense, self.probabilities))
        log_max = rows.logits.amax(dim=-1) - self.log_z
        listed = rows if isinstance(rows, ListedRows) else None
        return Distribution(rows.logits, log_max, dense, probabilities, rows.rest - self.log_z.unsqueeze(-1), listed)


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


def raised_rows(rows: Rows, name: str = "base_logits") -> Rows:
    """As `raised`, of rows that may have a rest."""
    if not isinstance(rows, RowsWithRest):
        return raised(rows, name)
    if rows.rest.shape != (*rows.shape[:-1], 1):
        raise LogitsError(
            f"The rest of {name} must have the shape {(*rows.shape[:-1], 1)}, one entry for each row, but has "
            f"{tuple(rows.rest.shape)}."
        )
    logits, rest = raised(rows.logits, name), raised(rows.rest, f"the rest of {name}")
    return rows.to(logits.dtype) if isinstance(rows, ListedRows) else RowsWithRest(logits, rest)


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


def refuse(name: str, rows: Rows) -> None:
    """Raise the LogitsError of `problem_of`, if a row is bad."""
    if problem := problem_of(name, rows):
        raise LogitsError(problem)


def problem_of(name: str, rows: Rows) -> str | None:
    """What is wrong with the first bad row of (..., vocab). None if all rows are distributions."""
    whole = raised(joined(rows))
    whole = whole.reshape(-1, whole.shape[-1])
    bad = torch.log_softmax(whole, dim=-1)[:, 0].isnan()
    if not bool(bad.any()):
        return None
    index = int(bad.nonzero()[0, 0])
    row = whole[index]
    if bool(row.isnan().any()):
        problem = f"NaN at {_place(row.isnan(), rows)}"
    elif bool((row == torch.inf).any()):
        problem = f"+inf at {_place(row == torch.inf, rows)}"
    else:
        problem = "no finite entry: every token has probability zero"
    return (
        f"{name} of shape {tuple(rows.shape)}: row {index} has {problem}. "
        "Entries must be finite or -inf, with at least one finite in each row."
    )


def _place(marks: Tensor, rows: Rows) -> str:
    token = int(marks.nonzero()[0, 0])
    return f"token {token}" if token < rows.shape[-1] else "its rest"

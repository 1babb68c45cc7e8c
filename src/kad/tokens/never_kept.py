"""The tokens that p never keeps as they are: their mass belongs to no token of q*, or to q*'s end token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import cast

import torch
from torch import Tensor

from kad.method.distribution import EXCLUDED, ListedRows, Rows, RowsWithRest, move_to_rest, move_to_token
from kad.tokens.token_bytes import TokenBytes, first_stop

# The share of what is known of p's end, as a logarithm, below which what is not known of it changes nothing.
_LITTLE = math.log(1e-5)


@dataclass(frozen=True)
class NeverKept:
    """The tokens that p never keeps as they are."""

    foreign_ids: tuple[int, ...] = ()  # those that mean something else to q*, see `kad.tokens.vocabulary.foreign_ids`
    ends: Ends | None = None  # those by which p ends an answer in a prompt of its own
    end: int | None = None  # the token of q* that has the mass by which p ends. None: the rest has it

    def move(self, rows: Rows, answers: Sequence[Sequence[int]], deferral_temperature: float = 1.0) -> RowsWithRest:
        """Rows of p (n, vocab) in which these tokens have no mass.

        Args:
            rows: logits of p.
            answers: the tokens of the answer before each row.
            deferral_temperature: see `kad.method.distribution.move_to_rest`.
        """
        vocab, device = rows.shape[-1], rows.device
        never, over = foreign_tokens(self.foreign_ids, vocab, device), None
        if self.ends is not None:
            kinds = torch.stack([self.ends.after(answer) for answer in answers]).to(device)
            over = kinds == OVER
            never = (kinds == PART) | (never & ~over)
        if self.end is None and over is not None:
            never, over = never | over, None
        moved = move_to_rest(rows, never, deferral_temperature)
        if over is not None and self.end is not None:
            moved = move_to_token(moved, over, self.end, deferral_temperature)
        return self._listed(rows, moved, over, answers) if isinstance(rows, ListedRows) else moved

    def _listed(
        self, rows: ListedRows, moved: RowsWithRest, over: Tensor | None, answers: Sequence[Sequence[int]]
    ) -> ListedRows:
        """As `move`, of rows (n, vocab) of which a list is known.

        What p gives to its ends is a sum. Where some of these tokens are not in the list, the end token of q* may have
        up to so much more, and counts as not listed, unless that is next to nothing.
        """
        bound = rows.bound
        if over is not None:
            missing = (over & (rows.logits < EXCLUDED / 2)).sum(dim=-1, keepdim=True)
            most = torch.minimum(rows.rest, bound + missing.log())
            known = moved.logits[:, self.end : (self.end or 0) + 1]
            bound = torch.where(most > known + _LITTLE, bound.maximum(torch.logaddexp(known, most)), bound)

        def again(indices: Sequence[int]) -> ListedRows:
            longer = rows.with_longer([int(rows.place[index]) for index in indices])
            return cast("ListedRows", self.move(longer, [answers[index] for index in indices] if answers else ()))

        places = torch.arange(len(rows.place)).unsqueeze(-1)
        return ListedRows(moved.logits, moved.rest, bound, places, tuple((again, at) for at in range(len(places))))


def foreign_tokens(ids: Sequence[int], vocab_size: int, device: torch.device | str = "cpu") -> Tensor:
    """(vocab,), bool: these tokens."""
    return _marked(tuple(ids), vocab_size, torch.device(device))


@lru_cache(maxsize=8)
def _marked(ids: tuple[int, ...], vocab_size: int, device: torch.device) -> Tensor:
    marks = torch.zeros(vocab_size, dtype=torch.bool)
    marks[list(ids)] = True
    return marks.to(device)


# What a token does to an answer: nothing, a part of its end, its end.
NONE, PART, OVER = 0, 1, 2


class Ends:
    """What each token does to the end of an answer in p's own prompt.

    Args:
        ids: the tokens that end any text.
        vocab_size: the number of entries in a row of p.
        stops: the texts that end an answer there.
        tokens: the tokenizer, where there are stops.
    """

    def __init__(
        self, ids: Sequence[int], vocab_size: int, stops: Sequence[bytes] = (), tokens: TokenBytes | None = None
    ) -> None:
        self._ids, self._vocab, self._stops, self._tokens = list(ids), vocab_size, tuple(stops), tokens
        # Many stops, each of them long, may come from a request: sets, so that none is looked at for every token.
        self._beginnings = frozenset(stop[:count] for stop in stops for count in range(1, len(stop)))

    def after(self, answer: Sequence[int]) -> Tensor:
        """(vocab,), int8: what each token does after an answer so far.

        OVER: with it the answer has ended, and nothing of it is shown. PART: it begins or continues a stop, completes
        one after text that belongs to the answer, or stands for no token.
        """
        if self._tokens is None or not self._stops:
            return self._anywhere
        text = self._tokens.bytes_of(answer[-max(map(len, self._stops)) :])
        begun = {stop[count:] for stop in self._stops for count in range(1, len(stop)) if text.endswith(stop[:count])}
        if not begun:
            return self._anywhere
        heads = {head for rest in begun for head in _heads(rest[: self._tokens.longest])}
        pieces = enumerate(self._tokens.pieces[: self._vocab])
        # One of the two begins with the other.
        met = {at: piece for at, piece in pieces if piece and (piece in heads or not begun.isdisjoint(_heads(piece)))}
        kinds = self._anywhere.clone()
        kinds[list(met)] = torch.tensor([self._kind(text, piece) for piece in met.values()], dtype=torch.int8)
        return kinds

    @cached_property
    def _anywhere(self) -> Tensor:
        """The same after an answer with which no stop begins."""
        pieces = [] if self._tokens is None else self._tokens.pieces[: self._vocab]
        kinds = [self._kind(b"", piece) if piece else NONE for piece in pieces]
        kinds += [NONE if self._tokens is None else PART] * (self._vocab - len(kinds))
        found = torch.tensor(kinds, dtype=torch.int8)
        found[self._ids] = OVER
        return found

    def _kind(self, text: bytes, piece: bytes) -> int:
        whole = text + piece
        place = first_stop(whole, self._stops, len(text))
        if place is None:
            return NONE if self._beginnings.isdisjoint(whole[start:] for start in range(len(whole))) else PART
        return OVER if place <= len(text) else PART


def _heads(text: bytes) -> Iterator[bytes]:
    """Every beginning of a text, the whole included."""
    return (text[:count] for count in range(1, len(text) + 1))

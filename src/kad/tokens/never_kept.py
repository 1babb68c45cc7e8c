"""The tokens that p never keeps: what it gives to them belongs to no token of q*, and is always deferred."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from kad.tokens.token_bytes import TokenBytes


@dataclass(frozen=True)
class NeverKept:
    """The tokens that p never keeps."""

    foreign_ids: tuple[int, ...] = ()  # those that mean something else to q*, see `kad.tokens.vocabulary.foreign_ids`
    stops: Stops | None = None  # the texts by which p's own prompt ends an answer. p keeps no token of them

    def after(self, answer: Sequence[int], vocab_size: int) -> Tensor:
        """(vocab,), bool, on the CPU: the tokens after an answer so far."""
        foreign = foreign_tokens(self.foreign_ids, vocab_size)
        if self.stops is None:
            return foreign
        own = self.stops.after(answer)
        # Rows of logits may be longer: what is past the tokenizer stands for no token.
        return foreign | torch.nn.functional.pad(own, (0, vocab_size - len(own)), value=True)


def foreign_tokens(ids: Sequence[int], vocab_size: int, device: torch.device | str = "cpu") -> Tensor:
    """(vocab,), bool: these tokens."""
    return _marked(tuple(ids), vocab_size, torch.device(device))


@lru_cache(maxsize=8)
def _marked(ids: tuple[int, ...], vocab_size: int, device: torch.device) -> Tensor:
    marks = torch.zeros(vocab_size, dtype=torch.bool)
    marks[list(ids)] = True
    return marks.to(device)


class Stops:
    """The tokens that begin, continue or complete one of some stop strings.

    Args:
        tokens: the tokenizer.
        stops: the stop strings.
    """

    def __init__(self, tokens: TokenBytes, stops: Sequence[bytes]) -> None:
        self._tokens, self._stops = tokens, tuple(stops)

    def after(self, ids: Sequence[int]) -> Tensor:
        """The tokens (vocab,), as bool, that belong to a stop string when they follow some ids."""
        text = self._tokens.bytes_of(ids[-max(map(len, self._stops)) :])
        begun = [stop[count:] for stop in self._stops for count in range(1, len(stop)) if text.endswith(stop[:count])]
        if not begun:
            return self._anywhere
        return self._anywhere | self._that(lambda piece: any(_meet(piece, rest) for rest in begun))

    @cached_property
    def _anywhere(self) -> Tensor:
        """The tokens that hold a stop string, or end with the beginning of one."""
        beginnings = tuple(stop[:count] for stop in self._stops for count in range(1, len(stop)))
        return self._that(lambda piece: piece.endswith(beginnings) or any(stop in piece for stop in self._stops))

    def _that(self, belongs: Callable[[bytes], bool]) -> Tensor:
        return torch.tensor([bool(piece) and belongs(piece or b"") for piece in self._tokens.pieces])


def _meet(piece: bytes, rest: bytes) -> bool:
    """Whether one of two texts begins with the other."""
    return piece.startswith(rest) or rest.startswith(piece)

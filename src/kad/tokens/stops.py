"""Which tokens end a text at a stop string, or could."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from kad.tokens.token_bytes import TokenBytes


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

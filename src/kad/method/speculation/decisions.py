"""What the loop and a policy say to each other: drafts, the verdict on a window, what follows it, and records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

# Rows of logits (rows, vocab) by the role of the model, without the drafting model.
Rows = dict[str, Tensor]
# (length of the prefix, log-probabilities (vocab,)) -> scores (vocab,): the user's logits processors.
Warp = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Draft:
    """One drafted token.

    Attributes:
        token: ().
        logits: (vocab,), the drafting model's.
        weights: (vocab,), the probabilities it was drawn from, or the scores of which it has the largest.
    """

    token: Tensor
    logits: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Open:
    """The position after a window of accepted drafts, where the next row of the drafting model settles the token.

    Attributes:
        rows: the logits (1, vocab) of the other models there. None if the token was deferred, so that the drafting
            model draws it alone.
    """

    rows: Rows | None = None


@dataclass(frozen=True)
class Settled:
    """The token of an open position. Nothing of it has been read from the device.

    Attributes:
        token: ().
        flag: (1,), NaN if a row that it was chosen from is not a distribution.
        explain: raises the error for such a row.
    """

    token: Tensor
    flag: Tensor
    explain: Callable[[], None]

    def read(self) -> int:
        """The token, in a transfer of its own."""
        (flag,), (token,) = read(self.flag, self.token)
        return self.checked(flag, token)

    def checked(self, flag: float, token: float) -> int:
        """The token as a number, if its flag is one."""
        if flag != flag:
            self.explain()
        return int(token)


@dataclass(frozen=True)
class Verdict:
    """The outcome for one window, read from the device in one vector.

    Attributes:
        settled: the token that was settled before the drafts, if there was one.
        drafts: the drafts.
        accepted: how many of them are accepted.
        token: the token () that follows them. Nothing stands there if the position is still open.
        follows: the same as a number. None if the position is still open.
        chance: the acceptance probabilities min(1, pi/q) at the positions reached, at most accepted + 1 of them.
        alpha: the deferred mass at these positions. Empty if it is not known.
    """

    settled: int | None
    drafts: Sequence[int]
    accepted: int
    token: Tensor
    follows: int | None
    chance: Sequence[float]
    alpha: Sequence[float]


def read(*parts: Tensor) -> list[list[float]]:
    """The numbers of each part, of any shape and dtype, in one transfer. Tokens below 2^24 are exact in every dtype."""
    numbers = iter(torch.cat([part.reshape(-1) for part in parts]).tolist())
    return [list(islice(numbers, part.numel())) for part in parts]


@dataclass
class Records:
    """Scores and raw log pi of the emitted tokens, if `generate` must return them: (1, vocab) rows, one a token."""

    scores: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    def add(self, scores: Tensor, logits: Tensor) -> None:
        """Record rows (n, vocab)."""
        self.scores += [row.unsqueeze(0) for row in scores]
        self.logits += [row.unsqueeze(0) for row in logits]


def warp_of(processors: Any, ids: Tensor, padding: int) -> Warp | None:
    """The processors as a function of the length of the prefix. None if there are none.

    They see the ids that `generate` gave, with padding. They get a copy of the row, because some change it in place.
    """
    if not processors:
        return None

    def warp(length: int, log_probs: Tensor) -> Tensor:
        scores: Tensor = processors(ids[: padding + length].unsqueeze(0), log_probs.unsqueeze(0).clone())
        return scores[0]

    return warp

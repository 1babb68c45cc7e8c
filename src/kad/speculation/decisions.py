"""What the loop and a policy say to each other: drafts, the verdict on a window, what follows it, and records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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
class Verdict:
    """The outcome for one window.

    Attributes:
        accepted: how many drafts are accepted.
        correction: the token () that follows them. None if all are accepted and the position after them is still open.
        chance: the acceptance probabilities min(1, pi/q) at the positions reached, at most accepted + 1 of them.
    """

    accepted: int
    correction: Tensor | None
    chance: Sequence[float]


@dataclass(frozen=True)
class Bonus:
    """What follows a window whose drafts were all accepted.

    Attributes:
        token: (), if it could be drawn without the drafting model. Else the next row of that model settles it.
        rows: the logits (1, vocab) of the other models at this position, if settling needs them. None if the token was
            deferred, so that the drafting model draws it.
    """

    token: Tensor | None = None
    rows: Rows | None = None


@dataclass
class Records:
    """Scores and raw log pi of the emitted tokens, if `generate` must return them: (1, vocab) rows, one a token."""

    scores: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    def add(self, scores: Tensor, logits: Tensor) -> None:
        """Record rows (n, vocab)."""
        self.scores += [row.unsqueeze(0) for row in scores]
        self.logits += [row.unsqueeze(0) for row in logits]

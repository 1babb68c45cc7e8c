"""How many tokens to draft: a fixed number, or the one that measured acceptance and measured times make the fastest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kad.errors import UsageError

AUTO = "auto"
# Longest window that "auto" considers.
MAX_WINDOW = 12
# The windows among which "auto" chooses if each of them costs a captured forward pass.
FEW_SIZES = (0, 2, 4, 8)
# Memory of the running means: an acceptance of 20 observations ago counts a third, a time of 60 ago. Without drafts,
# one token may take twice the time of the next.
_DECAY, _DECAY_OF_TIME = 0.95, 0.983
# First sizes tried, the first while the prompt is read; a loss stays small where drafting does not pay.
_FIRST_SIZES = (3, 0, 1, 0)
# After so many windows, "auto" tries another size than its present choice once.
_LOOK_EVERY = 24
# A window must promise this much over plain decoding, or "auto" does not speculate: the noise of the estimates.
_MARGIN = 1.02


class WindowSize(Protocol):
    """Chooses the size of each window, and learns from the result."""

    @property
    def sizes(self) -> Sequence[int]:
        """All sizes that it may choose, in rising order."""

    def next(self) -> int:
        """The number of tokens to draft."""

    def observe(self, size: int, seconds: float | None, chance: Sequence[float]) -> None:
        """Learn from a window.

        Args:
            size: the number of drafts.
            seconds: its time. None if it also read the prompt.
            chance: the acceptance probabilities at the positions reached.
        """


@dataclass(frozen=True)
class FixedWindow:
    """Always the same size."""

    size: int

    @property
    def sizes(self) -> Sequence[int]:
        """The one size."""
        return (self.size,)

    def next(self) -> int:
        """The number of tokens to draft."""
        return self.size

    def observe(self, size: int, seconds: float | None, chance: Sequence[float]) -> None:
        """A fixed size learns nothing."""


@dataclass
class _Mean:
    """A running mean that forgets."""

    decay: float = _DECAY
    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float) -> None:
        self.total = self.total * self.decay + value
        self.weight = self.weight * self.decay + 1.0

    @property
    def value(self) -> float:
        return self.total / self.weight


@dataclass
class AutoWindow:
    """Learns the acceptance beta and the time of a window, and takes the size W with the most tokens per second.

    A window of W drafts gives (1 - beta^(W+1)) / (1 - beta) tokens in expectation [Spec]. Its time is measured for each
    size. Between measured sizes the time follows a straight line: base cost plus draft cost times W. Size 0, plain
    decoding, is one of the choices. So drafting that does not pay stops, and is tried again from time to time.
    What it has learned from one text holds for the next one of its kind, and for others that are written at the same
    time: each step is safe where threads meet.
    """

    sizes: Sequence[int] = tuple(range(MAX_WINDOW + 1))
    _chance: _Mean = field(default_factory=_Mean)
    _seconds: dict[int, _Mean] = field(default_factory=dict)
    _windows: int = 0
    _wait: int = _LOOK_EVERY
    _up: bool = False

    def next(self) -> int:
        """The number of tokens to draft."""
        number = self._windows = self._windows + 1
        if number <= len(_FIRST_SIZES):
            return self._at_least(_FIRST_SIZES[number - 1])
        best = self._best()
        if number % self._wait == 0:
            # Such a trial costs a little. The longer speculation has not paid, the rarer the trials. Where it pays,
            # plain decoding is tried in turn with the next size: its time differs from token to token.
            self._wait = min(self._wait * 2, 16 * _LOOK_EVERY) if best == 0 else _LOOK_EVERY
            self._up = best == 0 or not self._up
            return self._at_least(best + 1) if self._up else 0
        return best

    def _at_least(self, size: int) -> int:
        return next((known for known in self.sizes if known >= size), self.sizes[-1])

    def observe(self, size: int, seconds: float | None, chance: Sequence[float]) -> None:
        """See `WindowSize`."""
        if seconds is not None:
            self._seconds.setdefault(size, _Mean(_DECAY_OF_TIME)).add(seconds)
        for value in chance:
            self._chance.add(value)

    @property
    def acceptance(self) -> float | None:
        """The estimate of beta. None before the first verified draft."""
        return min(self._chance.value, 0.999) if self._chance.weight else None

    def _best(self) -> int:
        if self.acceptance is None or len(self._seconds) < 2:
            return 0
        rates = {size: self._expected_tokens(size) / self._time(size) for size in self.sizes}
        best = max(rates, key=lambda size: rates[size])
        return best if rates[best] > _MARGIN * rates[0] else 0

    def _expected_tokens(self, size: int) -> float:
        beta = self.acceptance or 0.0
        return (1.0 - beta ** (size + 1)) / (1.0 - beta)

    def _time(self, size: int) -> float:
        if size in self._seconds and self._seconds[size].weight > 1.5:
            return self._seconds[size].value
        intercept, slope = self._line()
        return max(intercept + slope * size, 1e-9)

    def _line(self) -> tuple[float, float]:
        """Weighted least squares of seconds on size, never falling."""
        points = [(size, mean.value, mean.weight) for size, mean in list(self._seconds.items()) if mean.weight]
        weight = sum(w for _, _, w in points)
        x_mean = sum(x * w for x, _, w in points) / weight
        y_mean = sum(y * w for _, y, w in points) / weight
        spread = sum(w * (x - x_mean) ** 2 for x, _, w in points)
        covariance = sum(w * (x - x_mean) * (y - y_mean) for x, y, w in points)
        slope = max(covariance / spread, 0.0) if spread > 0 else 0.0
        return max(y_mean - slope * x_mean, 1e-9), slope


def window_size(num_draft_tokens: int | str, *, few: bool = False) -> WindowSize:
    """A fixed size, or "auto".

    Args:
        num_draft_tokens: the size, or "auto".
        few: whether "auto" must do with a few sizes.

    Raises:
        UsageError: anything else.
    """
    if num_draft_tokens == AUTO:
        return AutoWindow(FEW_SIZES) if few else AutoWindow()
    is_int = isinstance(num_draft_tokens, int) and not isinstance(num_draft_tokens, bool)
    if not is_int or int(num_draft_tokens) < 0:
        raise UsageError(f"num_draft_tokens must be a whole number >= 0 or 'auto', but is {num_draft_tokens!r}.")
    return FixedWindow(int(num_draft_tokens))

"""What speculation did token by token, read off the counts of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from kad.speculation import SpeculationStatistics
from kad.tracing.tracer import SpeculationEvent


@dataclass
class _Window:
    drafted: int
    accepted: int
    deferred_before: int
    rejected: Tensor | None = None


@dataclass
class SpeculationLog(SpeculationStatistics):
    """Statistics that remember the order of things: pass one as `statistics=` and ask it for `events`.

    A window is its accepted drafts, then one token more: the correction after a rejection, or the bonus token after a
    whole window. So the windows in their order say what every token is.
    """

    _windows: list[_Window] = field(default_factory=list, repr=False)

    def count_window(self, drafted: int, accepted: int, chance: Sequence[float] = ()) -> None:
        """See `SpeculationStatistics`."""
        super().count_window(drafted, accepted, chance)
        self._windows.append(_Window(drafted, accepted, self.bonus_deferred))

    def count_correction(self, rejected: Tensor) -> None:
        """See `SpeculationStatistics`."""
        super().count_correction(rejected)
        self._windows[-1].rejected = rejected

    def events(self, tokens: int) -> list[SpeculationEvent | None]:
        """One event a token, for the first `tokens` tokens; None for those of windows that drafted nothing."""
        events: list[SpeculationEvent | None] = []
        # A bonus token left open is settled before the next window is counted.
        after = [window.deferred_before for window in self._windows[1:]] + [self.bonus_deferred]
        for window, deferred_after in zip(self._windows, after, strict=True):
            events += [SpeculationEvent("accepted")] * window.accepted
            if window.rejected is not None:
                events.append(SpeculationEvent("rejected", int(window.rejected)))
            elif deferred_after > window.deferred_before:
                events.append(SpeculationEvent("deferred") if window.drafted else None)
            else:
                events.append(SpeculationEvent("bonus") if window.drafted else None)
        return events[:tokens]

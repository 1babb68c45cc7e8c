"""How far an evaluation is, on standard error: a bar on a terminal, and a line now and then through a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kad.cli import stdio

if TYPE_CHECKING:
    from kad.evaluation.results.settings import Settings
    from kad.evaluation.run import Progress as Told

Start = Callable[["Settings"], "Told"]
_LINES = 20
_SECONDS = 60.0


@contextmanager
def shown() -> Iterator[Start]:
    """What `evaluate` calls with a run's settings. All samples of the run count, those of earlier starts as done."""
    if stdio.stderr().is_terminal:
        with _bar() as start:
            yield start
    else:
        yield lambda settings: Lines(_total(settings), stdio.message)


class Lines:
    """Progress as lines: whenever another twentieth of the samples is done, or a minute has passed.

    Args:
        total: samples of the whole run.
        write: takes a line.
    """

    def __init__(self, total: int, write: Callable[[str], None]) -> None:
        self._total, self._write = total, write
        self._done = self._written = 0
        self._started = self._last = time.monotonic()

    def __call__(self, what: str, done: int) -> None:
        """`done` more samples are finished, and `what` ran."""
        self._done += done
        now = time.monotonic()
        twentieth = self._done * _LINES // max(self._total, 1)
        if twentieth == self._written and now - self._last < _SECONDS:
            return
        self._written, self._last = twentieth, now
        left = (now - self._started) / self._done * (self._total - self._done)
        self._write(f"{self._done} of {self._total} samples, about {_duration(left)} left: {what}")


@contextmanager
def _bar() -> Iterator[Start]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    # A long method must not push the bar off a narrow terminal.
    name = TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", max_width=32))
    columns = (name, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stdio.stderr()) as bar:

        def start(settings: Settings) -> Told:
            task = bar.add_task("", total=_total(settings))
            return lambda what, done: bar.update(task, description=what, advance=done)

        yield start


def _total(settings: Settings) -> int:
    from kad.evaluation.run import total_samples

    return total_samples(settings)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"

"""What `eval`, `sweep`, `tune` and `reproduce` share: options, a plan from them, progress, the printed report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from kad.cli import stdio
from kad.cli.common import ModelOptions
from kad.disk import own_cache
from kad.engines.load import check_installed, first_device
from kad.evaluation import host
from kad.evaluation.methods import Method, parse_methods
from kad.evaluation.results.storage import check_place
from kad.evaluation.run_options import RunOptions, TaskOptions
from kad.options import Option
from kad.pair.base_prompt import BasePrompt
from kad.pair.sources import Source

if TYPE_CHECKING:
    from kad.evaluation.evaluate import Plan, Progress
    from kad.evaluation.results.settings import Settings
    from kad.evaluation.results.tables import Report

Baseline = Annotated[
    str | None, Option("The method that the others are compared with.", "METHOD", shown="aligned, else the first")
]
RunFolder = Annotated[Path, Option("Run directory. A stopped run continues there.", "DIR", "-o")]
Start = Callable[["Settings"], "Progress"]
_LINES = 20
_SECONDS = 60.0


def check(out: Path, run: RunOptions) -> None:
    """Refuse at once a run directory that cannot be written, and a run for which a package is missing."""
    check_place(out)
    stdio.check_folder(out, f"the run directory {out}", "Choose another --out.")
    host.check_installed()
    check_installed(run.engine)


def make_plan(
    models: ModelOptions, tasks: TaskOptions, run: RunOptions, methods: str | Sequence[Method], out: Path
) -> Plan:
    """A plan from the options of a command, for the run directory `out`. The method `pair` is the pair's own rule."""
    check(out, run)
    if tasks.include_path is not None and tasks.include_path.is_dir():
        _say_that_tasks_are_code()
    # A pair may get a reference model for one run.
    own = None if models.base is not None or models.aligned is not None else models.reference
    reference = None if own is None else Source.parse(own)
    config = replace(models, reference=None if own is not None else models.reference).resolve()
    sources = config.model_sources()
    if reference is not None:
        sources["reference"] = reference
    from kad.evaluation.evaluate import Plan

    if config.own_source is not None:
        sources["pair"] = config.own_source
    parsed = parse_methods(methods, config.parsed_rule) if isinstance(methods, str) else methods
    load_options: dict[str, Any] = {"trust_remote_code": True} if models.trust_remote_code else {}
    if models.dtype is not None:
        load_options["dtype"] = models.dtype
    if models.device == "auto":
        load_options["device_map"] = "auto"
    return Plan(
        **vars(tasks),
        **vars(run),
        models=sources,
        methods=tuple(parsed),
        deferral_temperature=config.deferral_temperature,
        base_prompt=BasePrompt.parse(config.base_prompt),
        load_options=load_options,
        device=models.device or first_device(),
    )


def _say_that_tasks_are_code() -> None:
    """The first time on this machine; every time where nothing can be kept."""
    with suppress(OSError):
        said = own_cache() / "tasks-are-code"
        if said.exists():
            return
        said.touch()
    stdio.note("a task file is code: it can do here what you can. Use those that you wrote, or have read.")


def execute(plan: Plan, out: Path) -> Settings:
    """Run the plan with its progress on standard error."""
    from kad.evaluation.evaluate import evaluate

    with progress() as start:
        return evaluate(plan, out, start)


def show_report(report: Report, folder: Path | None, as_json: bool, **more: Any) -> None:
    """Print the report as a table or as JSON, and write its files to `folder`, if there is one."""
    from kad.evaluation.results.tables import terminal_table, write_report

    if folder is not None:
        for path in write_report(report, folder):
            stdio.message(f"wrote {path}")
    if as_json:
        stdio.print_json({**report.to_dict(), **more})
        return
    console = stdio.stdout()
    console.print(terminal_table(report.rows, console.width))
    for note in report.notes:
        stdio.note(note)


@contextmanager
def progress() -> Iterator[Start]:
    """For `evaluate`: from a run's settings to its progress. Samples of earlier starts count as done."""
    if stdio.stderr().is_terminal:
        with _bar() as start:
            yield start
    else:
        yield lambda settings: ProgressLines(settings.total_samples, stdio.message)


class ProgressLines:
    """Writes progress as lines: after each twentieth of all samples, or after a minute."""

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
    from rich import progress as rich
    from rich.table import Column

    # A long method must not push the bar off a narrow terminal.
    place = Column(no_wrap=True, overflow="ellipsis", max_width=32)
    name = rich.TextColumn("{task.description}", markup=False, table_column=place)
    columns = (name, rich.BarColumn(), rich.MofNCompleteColumn(), rich.TimeElapsedColumn(), rich.TimeRemainingColumn())
    with rich.Progress(*columns, console=stdio.stderr()) as bar:

        def start(settings: Settings) -> Progress:
            task = bar.add_task("", total=settings.total_samples)
            return lambda what, done: bar.update(task, description=what, advance=done)

        yield start


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"

"""What `eval`, `sweep`, `tune` and `reproduce` share: options, a plan from them, progress, the printed report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kad.cli import loading, stdio

if TYPE_CHECKING:
    from kad.evaluation.evaluate import Plan
    from kad.evaluation.results.report import Report
    from kad.evaluation.results.settings import Settings

_TASKS, _SAMPLING, _RUN = "Tasks", "Sampling", "Running"

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="DIR",
        help="Read the tasks' rows from JSON lines in DIR instead of the Hugging Face hub.",
        rich_help_panel=_TASKS,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", min=1, help="The first N questions of each task.", rich_help_panel=_TASKS),
]
Samples = Annotated[
    int, typer.Option("--samples", metavar="K", min=1, help="Answers to each question.", rich_help_panel=_SAMPLING)
]
RunSeed = Annotated[int, typer.Option("--seed", metavar="S", min=0, help="Seed of the run.", rich_help_panel=_SAMPLING)]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        metavar="T",
        help="Sampling temperature on log pi; 0 is greedy.",
        show_default="the task's, 1.0",
        rich_help_panel=_SAMPLING,
    ),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        metavar="N",
        min=1,
        help="Longest answer in tokens.",
        show_default="the task's, 1024 for the published ones",
        rich_help_panel=_SAMPLING,
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        "--batch-size",
        metavar="N",
        min=1,
        help="Questions at once, for plain decoding; speculative decoding takes one at a time.",
        rich_help_panel=_RUN,
    ),
]
EngineOption = Annotated[
    str, typer.Option("--engine", metavar="ENGINE", help="transformers or vllm.", rich_help_panel=_RUN)
]
EngineOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-option",
        metavar="KEY=VALUE",
        help="An argument of vllm.LLM (tensor_parallel_size, max_model_len, ...), its value as JSON; may be repeated.",
        rich_help_panel=_RUN,
    ),
]
Diagnostics = Annotated[
    bool,
    typer.Option(
        "--diagnostics/--no-diagnostics",
        help="One more pass over each answer for deferred mass and expected acceptance (not in the throughput).",
        rich_help_panel=_RUN,
    ),
]
Out = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="DIR", help="Run directory; a run that was stopped resumes there."),
]
Baseline = Annotated[
    str | None,
    typer.Option(
        "--baseline",
        metavar="METHOD",
        help="The method that the others are compared with.",
        show_default="aligned, else the first",
    ),
]


def pair_models(
    pair: str | None, base: str | None, aligned: str | None, reference: str | None
) -> tuple[dict[str, Any], float, str]:
    """The models by role, the deferral temperature and the rule of what the options name."""
    from kad.pairs import read_config
    from kad.sources import Source

    if base is not None or aligned is not None:
        loading.check_sources(pair, base, aligned, reference)
        named = {"base": base, "aligned": aligned, "reference": reference}
        models = {role: Source.parse(name) for role, name in named.items() if name is not None}
        return models, 1.0, "dual:threshold=0.4"
    config = read_config(pair or "tiny")
    models = config.model_references()
    if config.name_or_path:
        models["pair"] = Source(config.name_or_path)
    if reference is not None:
        models["reference"] = Source.parse(reference)
    return models, config.deferral_temperature, config.rule


def make_plan(
    *,
    pair: str | None,
    base: str | None,
    aligned: str | None,
    reference: str | None,
    deferral_temperature: float | None,
    dtype: str | None,
    device: str | None,
    trust_remote_code: bool,
    engine_option: list[str] | None,
    **rest: Any,
) -> Plan:
    """A plan from the options that name models and from the plan's own fields.

    Raises:
        UsageError: options that contradict each other or a value out of its range.
    """
    loading.quiet_transformers()
    from kad.evaluation.evaluate import Plan

    models, temperature, _ = pair_models(pair, base, aligned, reference)
    load_options: dict[str, Any] = {"trust_remote_code": True} if trust_remote_code else {}
    loading.check_dtype(dtype)
    if dtype is not None:
        load_options["dtype"] = dtype
    if device == "auto":
        load_options["device_map"] = "auto"
    return Plan(
        models=models,
        deferral_temperature=temperature if deferral_temperature is None else deferral_temperature,
        load_options=load_options,
        device=device or default_device(),
        engine_options=dict(loading.key_and_value("--engine-option", text) for text in engine_option or ()),
        **rest,
    )


def default_device() -> str:
    """The first accelerator, else the CPU."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator is None else str(accelerator)


def execute(plan: Plan, out: Path) -> Settings:
    """Run the plan with a progress bar on standard error."""
    from kad.evaluation.evaluate import evaluate

    with _progress() as progress:
        return evaluate(plan, out, progress)


def show_report(report: Report, folder: Path | None, as_json: bool, **more: Any) -> None:
    """The report on standard output, as a table or as JSON; its files in `folder` if one is given."""
    from kad.evaluation.results import tables
    from kad.evaluation.results.report import write_report

    if folder is not None:
        for path in write_report(report, folder):
            stdio.message(f"wrote {path}")
    if as_json:
        stdio.print_json({**report.to_dict(), **more})
        return
    console = stdio.stdout()
    console.print(tables.terminal_table(report.rows, console.width))
    for note in report.notes:
        stdio.message(f"note: {note}")


@contextmanager
def _progress() -> Iterator[Callable[[Settings], Callable[[str, int], None]]]:
    """A bar over all samples of the run with the time left; those of earlier starts count as done at once."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stdio.stderr()) as bar:

        def start(settings: Settings) -> Callable[[str, int], None]:
            from kad.evaluation.run import total_samples

            task = bar.add_task("", total=total_samples(settings))
            return lambda what, done: bar.update(task, description=what, advance=done)

        yield start

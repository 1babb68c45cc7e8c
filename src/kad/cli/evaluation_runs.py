"""What `eval`, `sweep`, `tune` and `reproduce` share: options, a plan from them, progress, the printed report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from kad.cli import loading, progress, stdio
from kad.cli.options import ModelOptions
from kad.engines.load import first_device
from kad.evaluation.options import RunOptions, TaskOptions
from kad.options import Option

if TYPE_CHECKING:
    from kad.evaluation.evaluate import Plan
    from kad.evaluation.methods import Method
    from kad.evaluation.results.report import Report
    from kad.evaluation.results.settings import Settings
    from kad.method.composition import Composition
    from kad.pair.base_prompt import BasePrompt
    from kad.pair.sources import Source

Baseline = Annotated[
    str | None, Option("The method that the others are compared with.", "METHOD", shown="aligned, else the first")
]
RunFolder = Annotated[Path, Option("Run directory. A stopped run continues there.", "DIR", "-o")]


def make_plan(models: ModelOptions, tasks: TaskOptions, run: RunOptions, methods: str | Sequence[Method]) -> Plan:
    """A plan from the options of a command.

    Args:
        models: which pair, or which models.
        tasks: which questions.
        run: how they are answered.
        methods: the methods, or their names, among which `pair` stands for the pair's own rule.

    Raises:
        UsageError: options that contradict each other, or a method whose model is not given.
    """
    loading.quiet_transformers()
    from kad.evaluation.evaluate import Plan
    from kad.evaluation.methods import parse_methods

    sources, composition, base_prompt = pair_models(models)
    parsed = parse_methods(methods, composition.rule) if isinstance(methods, str) else methods
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
        deferral_temperature=composition.deferral_temperature,
        base_prompt=base_prompt,
        load_options=load_options,
        device=models.device or first_device(),
    )


def pair_models(models: ModelOptions) -> tuple[dict[str, Source], Composition, BasePrompt | None]:
    """The models by role, how they are composed, and how the base model is asked, of what the options name."""
    from kad.method.composition import Composition
    from kad.pair.base_prompt import BasePrompt
    from kad.pair.sources import Source

    # A pair may get a reference model for one run.
    reference = None if models.base is not None or models.aligned is not None else models.reference
    config = replace(models, reference=None if reference is not None else models.reference).resolve()
    sources = config.model_sources()
    if reference is not None:
        sources["reference"] = Source.parse(reference)
    if config.name_or_path:
        sources["pair"] = Source(config.name_or_path)
    composition = Composition(config.parsed_rule, config.deferral_temperature)
    return sources, composition, BasePrompt.parse(config.base_prompt)


def execute(plan: Plan, out: Path) -> Settings:
    """Run the plan with its progress on standard error."""
    from kad.evaluation.evaluate import evaluate

    with progress.shown() as start:
        return evaluate(plan, out, start)


def show_report(report: Report, folder: Path | None, as_json: bool, **more: Any) -> None:
    """Print the report as a table or as JSON, and write its files to `folder` if one is given."""
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

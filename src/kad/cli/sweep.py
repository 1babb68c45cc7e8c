"""`kad sweep`: one rule over values of a parameter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from kad.cli import evaluation_runs as shared
from kad.cli import stdio
from kad.cli.common import Json, ModelOptions
from kad.cli.flatten import Without
from kad.evaluation.run_options import RunOptions, TaskOptions
from kad.options import Option

EXAMPLES = (
    "kad sweep --rule dual --grid 0.1:0.9:0.1 --tasks kad_tiny_development --out runs/thresholds",
    "kad sweep --rule dual --parameter num_draft_tokens --grid 3,5,7,8,auto --out runs/windows",
)

Grid = Annotated[str, Option("0.1,0.2,0.4 or START:STOP:STEP.", "VALUES")]


@dataclass(frozen=True)
class Axis:
    """What varies: one parameter of a rule."""

    rule: Annotated[str, Option("The rule whose parameter varies.", "RULE")] = "dual"
    parameter: Annotated[
        str | None,
        Option("The parameter, or num_draft_tokens for the window of speculation.", "NAME", shown="the rule's first"),
    ] = None
    speculative: Annotated[bool, Option("Decode speculatively.")] = False


DEVELOPMENT = TaskOptions(tasks=("kad_tiny_development",))


def command(
    *,
    out: shared.RunFolder,
    grid: Grid,
    axis: Axis,
    models: Annotated[ModelOptions, Without("rule", "engine", "engine_options")],
    tasks: TaskOptions = DEVELOPMENT,
    run: RunOptions,
    as_json: Json = False,
) -> None:
    """Evaluate a rule over values of one parameter. The result is a table and a curve.

    A stopped run continues with the same command.
    """
    from kad.evaluation.results.plots import write_curve
    from kad.evaluation.results.tables import build_report
    from kad.evaluation.tuning import make_grid

    points = make_grid(axis.rule, axis.parameter, grid, speculative=axis.speculative)
    plan = shared.make_plan(models, tasks, run, [point.method for point in points], out)
    settings = shared.execute(plan, out)
    report = build_report([out], points[0].method.name)
    rows = {(row.task, row.method): row for row in report.rows}
    curves: dict[str, list[dict[str, Any]]] = {}
    for task in settings.tasks:
        curve = [(point.value, rows[task.name, point.method.name]) for point in points]
        path = write_curve(curve, points[0].parameter, out / "report" / f"{task.name}-curve.svg")
        stdio.message(f"wrote {path}")
        curves[task.name] = [
            {"value": value, "throughput": row.throughput}
            | {metric: interval.estimate for metric, interval in row.accuracy.items()}
            for value, row in curve
        ]
    shared.show_report(report, out / "report", as_json, curves=curves)

"""`kad sweep`: one rule over values of a parameter."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kad.cli import evaluation_runs as shared
from kad.cli import options, stdio

EXAMPLES = (
    "kad sweep --rule dual --grid 0.1:0.9:0.1 --tasks kad_tiny_development --out runs/thresholds",
    "kad sweep --rule dual --parameter num_draft_tokens --grid 3,5,7,8,auto --out runs/windows",
)

RuleToSweep = Annotated[str, typer.Option("--rule", metavar="RULE", help="The rule whose parameter varies.")]
Parameter = Annotated[
    str | None,
    typer.Option(
        "--parameter",
        metavar="NAME",
        help="The parameter, or num_draft_tokens for the window of speculation.",
        show_default="the rule's first",
    ),
]
Grid = Annotated[str, typer.Option("--grid", metavar="VALUES", help="0.1,0.2,0.4 or START:STOP:STEP.")]
Speculative = Annotated[bool, typer.Option("--speculative", help="Decode speculatively.")]
Tasks = Annotated[str, typer.Option("--tasks", metavar="NAMES", help="Tasks separated by commas.")]


def command(
    out: shared.Out,
    grid: Grid,
    rule: RuleToSweep = "dual",
    parameter: Parameter = None,
    speculative: Speculative = False,
    tasks: Tasks = "kad_tiny_development",
    pair: options.Pair = None,
    base: options.Base = None,
    aligned: options.Aligned = None,
    reference: options.Reference = None,
    deferral_temperature: options.DeferralTemperature = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    limit: shared.Limit = None,
    data_dir: shared.DataDir = None,
    samples: shared.Samples = 1,
    seed: shared.RunSeed = 0,
    temperature: shared.Temperature = None,
    max_new_tokens: shared.MaxNewTokens = None,
    batch_size: shared.BatchSize = 8,
    engine: shared.EngineOption = "transformers",
    engine_option: shared.EngineOptions = None,
    diagnostics: shared.Diagnostics = True,
    json: options.Json = False,
) -> None:
    """Evaluate a rule along a grid of one parameter: the table and the curve. Resumable like kad eval."""
    from kad.evaluation.grid import make_grid
    from kad.evaluation.results.plots import write_curve
    from kad.evaluation.results.report import build_report

    points = make_grid(rule, parameter, grid, speculative=speculative)
    plan = shared.make_plan(
        pair=pair,
        base=base,
        aligned=aligned,
        reference=reference,
        deferral_temperature=deferral_temperature,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
        methods=tuple(point.method for point in points),
        tasks=tuple(name.strip() for name in tasks.split(",")),
        limit=limit,
        samples=samples,
        seed=seed,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        data_dir=data_dir,
        engine=engine,
        engine_option=engine_option,
        diagnostics=diagnostics,
    )
    settings = shared.execute(plan, out)
    report = build_report([out], points[0].method.name)
    rows = {(row.task, row.method): row for row in report.rows}
    curves: dict[str, list[dict[str, Any]]] = {}
    for task in settings.tasks:
        curve = [(point.value, rows[task.name, point.method.name]) for point in points]
        path = write_curve(curve, points[0].parameter, out / "report" / f"{task.name}-curve.svg")
        stdio.message(f"wrote {path}")
        curves[task.name] = [
            {"value": value, "strict": row.accuracy["strict"].estimate, "throughput": row.throughput}
            for value, row in curve
        ]
    shared.show_report(report, out / "report", json, curves=curves)

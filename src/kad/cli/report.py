"""`kad report`: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kad.cli import evaluation_runs as shared
from kad.cli import options

EXAMPLES = (
    "kad report runs/tiny",
    "kad report runs/seed-0 runs/seed-1 --out comparison",
)

Runs = Annotated[list[Path], typer.Argument(metavar="DIR...", help="Run directories of kad eval.")]
OutFolder = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="DIR", help="Write Markdown, CSV, JSON and plots there as well."),
]


def command(runs: Runs, out: OutFolder = None, baseline: shared.Baseline = None, json: options.Json = False) -> None:
    """Show one run again, or compare several: accuracies, paired differences, throughput, acceptance."""
    from kad.evaluation.results.report import build_report

    shared.show_report(build_report(runs, baseline), out, json)

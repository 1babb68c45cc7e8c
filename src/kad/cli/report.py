"""`kad report`: compare runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kad.cli import evaluation_runs as shared
from kad.cli import stdio
from kad.cli.common import Json
from kad.options import Option

EXAMPLES = (
    "kad report runs/tiny",
    "kad report runs/seed-0 runs/seed-1 --out comparison",
)

Runs = Annotated[list[Path], typer.Argument(metavar="DIR...", help="Run directories of kad eval.")]
Out = Annotated[Path | None, Option("Also write Markdown, CSV, JSON and plots to this folder.", "DIR", "-o")]


def command(runs: Runs, *, out: Out = None, baseline: shared.Baseline = None, as_json: Json = False) -> None:
    """Show one run again, or compare several: accuracies, paired differences, throughput, acceptance."""
    from kad.evaluation.results.tables import build_report

    if out is not None:
        stdio.check_folder(out)
    shared.show_report(build_report(runs, baseline), out, as_json)

"""`kad report`: compare runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kad.cli import evaluation_runs as shared
from kad.cli import stdio
from kad.cli.common import Json
from kad.disk import write_atomically
from kad.errors import UsageError
from kad.options import Option

EXAMPLES = (
    "kad report runs/tiny",
    "kad report runs/seed-0 runs/seed-1 --out comparison",
    "kad report runs/tiny --html report.html",
)

Runs = Annotated[list[Path], typer.Argument(metavar="DIR...", help="Run directories of kad eval.")]
Out = Annotated[Path | None, Option("Also write Markdown, CSV, JSON and plots to this folder.", "DIR", "-o")]
Html = Annotated[
    Path | None,
    Option("Also write one page that works offline: tables, plots, and every question with all answers.", "FILE"),
]


def command(
    runs: Runs, *, out: Out = None, html: Html = None, baseline: shared.Baseline = None, as_json: Json = False
) -> None:
    """Show one run again, or compare several: accuracies, paired differences, throughput, acceptance.

    --html shows the answers themselves: side by side, in the colors of the models that wrote them, filtered by task,
    by mark, and by where the methods disagree.
    """
    from kad.evaluation.results.tables import build_report

    if out is not None:
        stdio.check_folder(out)
    if html is not None:
        if html.suffix.lower() not in (".html", ".htm"):
            raise UsageError(f"The page is written as .html, not {html.name!r}.")
        stdio.check_writable(html)
    report = build_report(runs, baseline)
    if html is not None:
        from kad.evaluation.results.page import report_page

        write_atomically(html, report_page(report, runs))
        stdio.message(f"wrote {html}")
    shared.show_report(report, out, as_json)

"""`kad reproduce`: the published experiments, with the published models and settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from kad.cli import evaluation_runs as shared
from kad.cli import stdio
from kad.cli.common import Json, ModelOptions
from kad.cli.flatten import Only, Without
from kad.errors import UsageError
from kad.evaluation.run_options import RunOptions, TaskOptions
from kad.options import Option

EXAMPLES = (
    "kad reproduce qwen3 --dry-run",
    "kad reproduce olmo2 --limit 100 --out runs/olmo2",
)

Name = Annotated[str, typer.Argument(metavar="olmo2|qwen3", help="Which published pair.")]
PUBLISHED = TaskOptions(tasks=("kad_paper",))


def command(
    name: Name,
    *,
    out: Annotated[Path | None, Option("Run directory.", "DIR", "-o", shown="runs/NAME")] = None,
    dry_run: Annotated[bool, Option("Say what would be downloaded and run, and stop.")] = False,
    tasks: TaskOptions = PUBLISHED,
    run: Annotated[RunOptions, Without("temperature", "max_new_tokens", "diagnostics")],
    models: Annotated[ModelOptions, Only("device")],
    as_json: Json = False,
) -> None:
    """Run the published experiments again.

    First it says what it downloads and how much memory it needs. A stopped run continues with the same command.
    """
    from kad.pair.presets import preset

    published = preset(name)
    gigabytes = sum(model.gigabytes() for model in published.models)
    stdio.message(f"{name}: downloads {gigabytes:.0f} GB to the Hugging Face cache where it is not there yet:")
    for model in published.models:
        stdio.message(f"  {model.model} ({model.gigabytes():.1f} GB)")
    stdio.message(
        f"memory: {published.memory:.0f} GB of weights at once, in {published.dtype}, and room for the caches"
    )
    stdio.message(f"methods: {'; '.join(published.methods)}")
    settings = f"temperature {published.temperature}, {published.max_new_tokens} new tokens"
    stdio.message(f"settings: {settings}, one sample, thinking off")
    if dry_run:
        return
    from kad.evaluation.methods import parse_method
    from kad.evaluation.results.tables import build_report

    folder = out or Path("runs") / name
    names = {role: getattr(published, role).model for role in ("base", "aligned", "reference")}
    plan = shared.make_plan(
        replace(models, **names, dtype=published.dtype),
        tasks,
        replace(run, temperature=published.temperature, max_new_tokens=published.max_new_tokens),
        [parse_method(method) for method in published.methods],
        folder,
    )
    _check_reachable([model.model for model in published.models])
    shared.execute(plan, folder)
    shared.show_report(build_report([folder]), folder / "report", as_json)


def _check_reachable(models: list[str]) -> None:
    """Raise UsageError before the first long step if a model is not in the cache and cannot be downloaded."""
    from huggingface_hub import constants, try_to_load_from_cache

    missing = [model for model in models if not isinstance(try_to_load_from_cache(model, "config.json"), str)]
    if not missing:
        return
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _unreachable(constants.ENDPOINT)
    if reason is not None:
        raise UsageError(
            f"Not in the Hugging Face cache: {', '.join(missing)}; and the hub cannot be reached: {reason}. "
            "Connect, or fill the cache on another machine."
        )


def _unreachable(address: str) -> str | None:
    """Why the address cannot be reached, or None if it can. It is tried once: the hub's client would retry for long."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    try:
        urlopen(Request(address, method="HEAD"), timeout=10).close()
    except HTTPError:
        return None  # it answered
    except OSError as error:
        return str(getattr(error, "reason", error))
    return None

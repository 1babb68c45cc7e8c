"""`kad reproduce`: the published experiments, with the published models and settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kad.cli import evaluation_runs as shared
from kad.cli import stdio
from kad.cli.common import Json, ModelOptions
from kad.cli.flatten import Only, Without
from kad.errors import UsageError
from kad.evaluation.run_options import RunOptions, TaskOptions
from kad.options import Option
from kad.pair.presets import TASKS, Preset, Setting, preset

if TYPE_CHECKING:
    from rich.console import RenderableType

EXAMPLES = (
    "kad reproduce qwen3 --dry-run",
    "kad reproduce olmo2 --limit 100 --out runs/olmo2",
    "kad reproduce olmo2 --temperature 0.7 --out runs/olmo2-other-order",
)

Name = Annotated[str, typer.Argument(metavar="olmo2|qwen3", help="Which published pair.")]
PUBLISHED = TaskOptions(tasks=tuple(TASKS))


def command(
    name: Name,
    *,
    out: Annotated[Path | None, Option("Run directory.", "DIR", "-o", shown="runs/NAME")] = None,
    dry_run: Annotated[bool, Option("Say what would be downloaded and run, and stop.")] = False,
    temperature: Annotated[
        float | None,
        Option(
            "Temperature on the composed distribution instead: the other order. At 1 the two are the same.",
            "T",
            "-t",
            allowed=">= 0",
            shown="0.7 on every model's logits, before composing",
        ),
    ] = None,
    tasks: TaskOptions = PUBLISHED,
    run: Annotated[RunOptions, Without("temperature", "max_new_tokens", "diagnostics")],
    models: Annotated[ModelOptions, Only("device")],
    as_json: Json = False,
) -> None:
    """Run the published experiments again.

    First it says what it downloads, how much memory it needs, and where each setting is from: known from the papers'
    code, read second-hand, or ours. A stopped run continues with the same command. The report shows the accuracies that
    the papers report beside those measured.
    """
    published = preset(name)
    stdio.stderr().print(_plan(published, temperature))
    if dry_run:
        return
    from kad.evaluation.methods import parse_method
    from kad.evaluation.results.tables import build_report

    folder = out or Path("runs") / name
    names = {role: getattr(published, role).model for role in ("base", "aligned", "reference")}
    before = published.temperature if temperature is None else 1.0
    plan = shared.make_plan(
        replace(models, **names, dtype=published.dtype, deferral_temperature=before),
        tasks,
        replace(run, temperature=1.0 if temperature is None else temperature, max_new_tokens=published.max_new_tokens),
        [parse_method(method) for method in published.methods],
        folder,
    )
    _check_reachable([model.model for model in published.models])
    shared.execute(plan, folder)
    shared.show_report(build_report([folder]), folder / "report", as_json)


def _plan(published: Preset, temperature: float | None) -> RenderableType:
    """What is loaded, and every setting with its source."""
    from rich.console import Group
    from rich.table import Table

    at = Setting("temperature", f"{published.temperature} (an option of their code, 1.0 by default)", "second-hand")
    order = Setting("where it acts", "on the logits of every model, before composing", "code")
    if temperature is not None:
        at = Setting("temperature", f"{temperature:g}; they: {published.temperature}", "ours")
        order = Setting("where it acts", "on the composed distribution; they: on every model, before composing", "ours")
    models = Table("", "model", "GB", box=None, header_style="dim", pad_edge=False)
    for sign, role in (("p", "base"), ("q*", "aligned"), ("q", "reference"), ("p*", "oracle")):
        model = getattr(published, role)
        models.add_row(sign, model.model, f"{model.gigabytes():.1f}")
    table = Table("setting", "value", "source", box=None, header_style="dim", pad_edge=False)
    for setting in (at, order, *published.settings):
        table.add_row(*setting)
    gigabytes = sum(model.gigabytes() for model in published.models)
    return Group(
        f"{published.name}: downloads {gigabytes:.0f} GB to the Hugging Face cache where it is not there yet:",
        models,
        f"memory: {published.memory:.0f} GB of weights at once, and room for the caches",
        "",
        table,
        "",
        "source: known from the papers' code, read second-hand, or ours",
        "methods:",
        *(f"  {method}" for method in published.methods),
    )


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

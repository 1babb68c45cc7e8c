"""`kad rules`: the rules, their parameters, what they do, where they come from."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich import box
from rich.cells import cell_len
from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from kad.cli import common, stdio

EXAMPLES = (
    "kad rules",
    "kad rules primal",
    "kad rules --json | jq '.rules[].name'",
    'kad generate --rule primal:budget=0.8 "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?"',
)


def command(
    name: Annotated[str | None, typer.Argument(metavar="[RULE]", help="Explain this rule.")] = None,
    *,
    as_json: common.Json = False,
) -> None:
    """List the rules and their parameters, or explain one.

    At every position, a rule decides which tokens of the base model p are kept. The mass of the other tokens goes to
    the aligned model q*. Write a rule as NAME or NAME:PARAMETER=VALUE, for example dual:threshold=0.4.
    """
    from kad.method.rules import parse_rule, registry, skipped_plugins
    from kad.method.rules.describe import describe

    if name is not None:
        rule = describe(type(parse_rule(name)))
        stdio.print_result(rule, as_json, lambda: _explanation(rule))
        return
    described = [describe(rule) for rule in registry().values()]
    result = {"rules": described, "skipped": [asdict(plugin) for plugin in skipped_plugins()]}
    stdio.print_result(result, as_json, lambda: _table(described))


_FAMILIES = {
    "threshold": "Cascades that keep the tokens with p ≥ τ, one τ for each position",
    "cascade": "Other cascades, π = k p + α q*",
    "product": "Products of the models' probabilities",
}


def _explanation(rule: dict[str, Any]) -> Group:
    """One rule in full: what it does, its parameters, its source, how to use it."""
    parameters = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for parameter in rule["parameters"]:
        default = "required" if parameter["default"] is None else f"default {parameter['default']:g}"
        parameters.add_row(f"  {parameter['name']}", _range(parameter["min"], parameter["max"]), default)
    used = ",".join(f"{parameter['name']}={parameter['default'] or 0:g}" for parameter in rule["parameters"])
    written = f"{rule['name']}:{used}" if used else rule["name"]
    return Group(
        Text.assemble((rule["name"], "bold cyan"), f"   {_FAMILIES[rule['family']]}"),
        Text(rule["summary"]),
        *([parameters] if rule["parameters"] else []),
        *([Text("It needs the reference model.")] if rule["needs_reference"] else []),
        Text(f"Source: {rule['source']}; package {rule['package']}", "dim"),
        Text(f"Use it: --rule {written}"),
    )


def _table(described: list[dict[str, Any]]) -> Group:
    """One table a family: the rule with its parameters on the left, what it does and its source on the right."""
    # The left columns are equally wide, so the three tables look like one.
    width = max(cell_len(line) for rule in described for line in _left(rule).plain.splitlines())
    tables = {}
    for family, title in _FAMILIES.items():
        left = Column(no_wrap=True, min_width=width)
        tables[family] = Table(
            left, "", box=box.SIMPLE, show_header=False, title=title, title_justify="left", title_style="bold"
        )
    for rule in described:
        plugin = "" if rule["package"] == "kad" else f"; package {rule['package']}"
        text = Text.assemble(rule["summary"], "\n", (rule["source"] + plugin, "dim"))
        tables[rule["family"]].add_row(_left(rule), text)
    return Group(*tables.values(), _FOOT)


def _left(rule: dict[str, Any]) -> Text:
    text = Text(rule["name"], style="bold cyan")
    for parameter in rule["parameters"]:
        default = "" if parameter["default"] is None else f"={parameter['default']:g}"
        text.append(f"\n  {parameter['name']}{default}", "not bold default")
        text.append(f"  {_range(parameter['min'], parameter['max'])}", "not bold default dim")
    return text


_FOOT = Text(
    "Parameters stand with their default and range; write them as NAME:PARAMETER=VALUE,PARAMETER=VALUE.", style="dim"
)


def _range(low: float, high: float) -> str:
    ends = [f"{low:g}" if math.isfinite(low) else "-∞", f"{high:g}" if math.isfinite(high) else "∞"]
    return f"{'[' if math.isfinite(low) else '('}{ends[0]}, {ends[1]}{']' if math.isfinite(high) else ')'}"

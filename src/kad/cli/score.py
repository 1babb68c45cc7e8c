"""`kad score`: the perplexity of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kad.cli import common, stdio
from kad.options import Option
from kad.words import counted

EXAMPLES = (
    "kad score article.txt",
    "kad score article.txt --pair my-pair --rule primal:budget=0.9 --part-length 2048",
    "kad score article.txt --json | jq .perplexity.composed",
)


def command(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="A text file; nothing reads standard input.")
    ] = None,
    *,
    part_length: Annotated[
        int | None, Option("Read so many tokens at once.", "N", allowed=">= 1", shown="1024, or the models' context")
    ] = None,
    as_json: common.Json = False,
    models: common.ModelOptions,
) -> None:
    """Score a text: its perplexity under the composed model, and under each model alone.

    The text stands alone, without a chat template. Perplexities are per token, per word and per byte. They are those of
    lm-eval's rolling log-likelihoods. Only models of one tokenizer can be compared per token.
    """
    text = common.read_prompt(None, file)
    model = models.load()
    from rich.table import Column, Table

    from kad.text.scoring import perplexity

    scores = perplexity(model, text, part_length=part_length)
    units, who = ("tokens", "words", "bytes"), ("composed", "base", "aligned")
    known = [name for name in who if getattr(scores, name) is not None]
    perplexities = {name: {unit: scores.of(name, unit) for unit in units} for name in known}
    if as_json:
        stdio.print_json({**scores.to_dict(), "rule": str(model.composition.rule), "perplexity": perplexities})
        return
    headings = (Column(f"per {unit}", justify="right") for unit in ("token", "word", "byte"))
    table = Table("model", *headings, title="perplexity", title_justify="left")
    for name, values in perplexities.items():
        label = f"{name} ({model.composition.rule})" if name == "composed" else name
        table.add_row(label, *(f"{value:.4g}" for value in values.values()))
    stdio.stdout().print(table)
    mass = "" if scores.deferred_mass is None else f"deferred mass {scores.deferred_mass:.3f}, "
    stdio.stdout().print(f"{counted(scores.tokens, 'token')}, {mass}acceptance {scores.acceptance:.3f}", soft_wrap=True)

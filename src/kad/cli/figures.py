"""`kad figures`: the paper's four figures and three of ours, for any pair."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from kad.cli import stdio
from kad.cli.analyze import Budget
from kad.cli.common import Json, ModelOptions
from kad.cli.flatten import Without
from kad.cli.questions import Questions
from kad.options import Option

if TYPE_CHECKING:
    from kad.engines.load import Loaded
    from kad.engines.protocols import Model

EXAMPLES = (
    "kad figures -o figures",
    "kad figures --pair my-pair --oracle organization/big-instruct --task kad_gsm8k --limit 20 -o figures",
)


def command(
    *,
    out: Annotated[Path, Option("The folder for the figures.", "DIR", "-o")],
    questions: Questions,
    budget: Budget = 0.9,
    oracle: Annotated[
        str | None,
        Option("The big aligned model, which figure 3 compares with.", "MODEL", shown="the embedded pair's own"),
    ] = None,
    as_json: Json = False,
    models: Annotated[ModelOptions, Without("rule", "base_prompt", "engine", "engine_options")],
) -> None:
    """Draw the paper's figures for a pair, as PDF, PNG and SVG as wide as a column, each with the JSON behind it.

    1: the distributions at one position. 2: acceptance by rule. 3: entropy difference over the threshold. 4: critical
    item and unfilled budget. 5: accuracy against throughput. 6: optimality gap. 7: deferred mass over positions.
    """
    from kad.evaluation.results.plots import require_matplotlib
    from kad.figures.drawing import write_figures

    stdio.check_folder(out)
    require_matplotlib()  # a missing matplotlib is worth knowing before the models run
    model = models.load()
    tokenizer = model.tokenizer
    prompts = questions.load(tokenizer)

    from kad.figures.data import FigureOptions, collect

    figures = collect(
        model,
        tokenizer,
        prompts,
        oracle=_oracle(oracle or ("tiny:big-aligned" if models.embedded else None), model),
        settings=FigureOptions(max_new_tokens=questions.max_new_tokens, batch_size=questions.batch_size, budget=budget),
        progress=stdio.message,
    )
    paths = write_figures(figures, out)
    if "3-entropy-difference" not in figures:
        stdio.message("No figure 3: it needs the big aligned model, --oracle MODEL.")
    if as_json:
        stdio.print_json({"files": [str(path) for path in paths], "figures": figures})
    else:
        for path in paths:
            stdio.write(f"{path}\n")


def _oracle(name: str | None, model: Loaded) -> Model | None:
    """The big aligned model, run by the engine that its files are made for."""
    if name is None:
        return None
    from kad.engines.load import engine_for, load_one
    from kad.engines.pair import pair_of
    from kad.pair.sources import Source

    source = Source.parse(name)
    return load_one(source, engine_for(source), device=str(pair_of(model).device))

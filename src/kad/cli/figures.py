"""`kad figures`: the paper's four figures and three of ours, for any pair."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kad.cli import analyze, loading, options, stdio

EXAMPLES = (
    "kad figures -o figures",
    "kad figures --pair my-pair --target organisation/big-instruct --task kad_gsm8k --limit 20 -o figures",
)


def command(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder for the figures.")],
    task: analyze.Task = None,
    prompts: analyze.Prompts = None,
    data_dir: analyze.DataDir = None,
    limit: analyze.Limit = 50,
    max_new_tokens: analyze.MaxNewTokens = 256,
    batch_size: analyze.BatchSize = 16,
    budget: analyze.Budget = 0.9,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="MODEL",
            help="The big aligned model, which figure 3 compares with.",
            show_default="the embedded pair's own",
        ),
    ] = None,
    as_json: options.Json = False,
    pair: options.Pair = None,
    base: options.Base = None,
    aligned: options.Aligned = None,
    reference: options.Reference = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Draw the paper's figures for a pair, as PNG and SVG, each beside the JSON it was drawn from.

    1 the distributions at one position, 2 acceptance by rule, 3 entropy difference over the threshold, 4 critical item
    and unfilled budget, 5 accuracy against throughput, 6 optimality gap, 7 deferred mass over positions.
    """
    analyze.check_source(task, prompts)
    from kad.figures.drawing import require_pyplot, write_figures

    require_pyplot()  # a missing matplotlib is worth knowing before the models run
    model = loading.load_model(
        pair, base, aligned, reference, dtype=dtype, device=device, trust_remote_code=trust_remote_code
    )
    tokenizer = loading.load_tokenizer(model)
    questions = analyze.load_questions(tokenizer, task, prompts, data_dir, limit)

    from kad.figures.data import Settings, collect

    embedded = pair in (None, "tiny") and base is None
    figures = collect(
        model,
        tokenizer,
        questions,
        target=_target(target or ("tiny:big-aligned" if embedded else None), model),
        settings=Settings(max_new_tokens=max_new_tokens, batch_size=batch_size, budget=budget),
        progress=stdio.message,
    )
    paths = write_figures(figures, output)
    if "3-entropy-difference" not in figures:
        stdio.message("No figure 3: it needs the big aligned model, --target MODEL.")
    if as_json:
        stdio.print_json({"files": [str(path) for path in paths], "figures": figures})
    else:
        for path in paths:
            typer.echo(path)


def _target(reference: str | None, model: Any) -> Any:
    """The big aligned model, loaded as the pair's own models are."""
    if reference is None:
        return None
    from kad.loading import load_model
    from kad.sources import Source, resolve_model

    return load_model(Source.parse(resolve_model(reference))).to(model.base.device)

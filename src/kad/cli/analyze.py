"""`kad analyze`: how close the rules come to the exact knapsack, on real text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from kad.cli import stdio
from kad.cli.common import Json, ModelOptions
from kad.cli.flatten import Without
from kad.cli.questions import Questions
from kad.disk import write_atomically
from kad.errors import UsageError
from kad.options import SEEDS, Option
from kad.words import counted

if TYPE_CHECKING:
    from rich.console import RenderableType

EXAMPLES = (
    "kad analyze --limit 50",
    "kad analyze --pair my-pair --task kad_gsm8k --limit 20 --json",
    "kad analyze --pair my-pair --prompts prompts.txt --budget 0.8",
)

Budget = Annotated[float, Option("The knapsack's budget b.", "B", allowed="[0, 1]")]
QUESTIONS = Questions(limit=100)


def command(
    *,
    questions: Questions = QUESTIONS,
    budget: Budget = 0.9,
    threshold: Annotated[float, Option("The dual rule's threshold.", "λ", allowed="[0.001, 1]")] = 0.4,
    accuracy: Annotated[bool, Option("Also answer under primal, dual, the exact optimum and the LP.")] = False,
    compare: Annotated[
        tuple[str, ...], Option("With --accuracy, answer under this rule too; may be repeated.", "RULE")
    ] = (),
    sampled: Annotated[bool, Option("Answer by sampling at temperature 1, not greedily.", name="--sample")] = False,
    out: Annotated[Path | None, Option("Also write the JSON to a file.", "FILE", "-o")] = None,
    as_json: Json = False,
    models: Annotated[ModelOptions, Without("reference", "rule", "base_prompt", "engine", "engine_options")],
    seed: Annotated[int, Option("Seed of the random numbers.", "N", allowed=SEEDS)] = 0,
) -> None:
    """Measure how close primal and dual come to the exact optimum of the knapsack, at every position of answers.

    The pair writes the answers. With --accuracy, the command also answers under the other solutions, to see what the
    optimum would change.
    """
    if out is not None:
        stdio.check_writable(out)
    if compare and not accuracy:
        raise UsageError("--compare adds rules to --accuracy: give both.")
    from kad.method.rules import Primal, parse_rule

    others = [parse_rule(rule) for rule in compare]
    model = models.load()
    tokenizer = model.tokenizer
    prompts = questions.load(tokenizer)
    how: dict[str, Any] = {
        "max_new_tokens": questions.max_new_tokens,
        "batch_size": questions.batch_size,
        "sampled": sampled,
        "seed": seed,
    }

    from kad.figures.analysis import accuracies, answer, approximation_on, summarize

    stdio.message(f"answering {counted(len(prompts), 'question')} under {Primal(budget)}")
    text = answer(model, tokenizer, prompts, Primal(budget), **how)
    stdio.message(f"solving the knapsacks of {counted(text.tokens, 'position')}")
    rows = approximation_on(model, text.answers, budget=budget, threshold=threshold)
    result: dict[str, Any] = {
        "schema": "kad-analysis/2",
        "task": questions.name,
        "questions": len(prompts),
        "sampled": sampled,
        "seed": seed,
        **summarize(rows, budget=budget, threshold=threshold),
        "accuracy": None,
    }
    if accuracy:
        result["accuracy"] = accuracies(
            model, tokenizer, prompts, budget=budget, threshold=threshold, others=others, progress=stdio.message, **how
        )
    if out is not None:
        write_atomically(out, json.dumps(result, indent=1) + "\n")
    stdio.print_result(result, as_json, lambda: _tables(result))


def _tables(result: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.table import Column, Table

    headings = (Column(name, justify="right") for name in ("mean", "median", "90 %", "99 %", "max"))
    spread = Table("", *headings, box=None, header_style="dim", pad_edge=False)
    rows = {
        "primal: certified gap, nats": result["primal"]["gap"],
        "dual: gap where within the budget": result["dual"]["gap_within_budget"],
        "dual: gap at the mass it defers": result["dual"]["gap_at_own_mass"],
        "unfilled budget": result["unfilled"],
        "critical item's weight": result["critical"],
        "head: tokens kept": result["head"],
        "TV exact to primal": result["exact"]["tv_to_primal"],
        "TV LP to primal": result["lp"]["tv_to_primal"],
    }
    for name, values in rows.items():
        if values is not None:
            spread.add_row(name, *(f"{value:.4g}" if value >= 1e-9 else "0" for value in values.values()))
    rules = Table("rule", "acceptance", "accuracy", box=None, header_style="dim", pad_edge=False)
    marks = result["accuracy"] or {}
    for name in {**result["acceptance"], **marks}:
        acceptance, mark = result["acceptance"].get(name), marks.get(name)
        cells = ("–" if acceptance is None else f"{acceptance:.3f}", "–" if mark is None else f"{100 * mark:.1f} %")
        rules.add_row(name, *cells)
    lines = [
        f"{result['positions']} positions of {result['questions']} answers, budget {result['budget']:g}, "
        f"threshold {result['threshold']:g}",
        f"primal is optimal at {result['primal']['share_optimal']:.1%} of them; the optimum would emit the same most "
        f"probable token at {result['exact']['same_argmax']:.1%}, and keeps p's at {result['exact']['keeps_top']:.1%}",
    ]
    return Group(*lines, "", spread, "", rules)

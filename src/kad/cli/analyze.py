"""`kad analyze`: how close the rules come to the exact knapsack, over real text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kad.cli import loading, options, stdio
from kad.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kad.figures.answers import Question

EXAMPLES = (
    "kad analyze --limit 50",
    "kad analyze --pair my-pair --task kad_gsm8k --limit 20 --json",
    "kad analyze --pair my-pair --prompts prompts.txt --budget 0.8",
)

Task = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="TASK",
        help="Questions: tiny (the embedded pair's own), or a task of kad eval (needs the eval extra).",
        show_default="tiny",
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option("--prompts", metavar="FILE", help="Questions from a file instead, one a line; no accuracy."),
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="Where a task's data lie, if not on the hub.")
]
Limit = Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Ask the first N questions.")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Longest answer, in tokens.")]
BatchSize = Annotated[int, typer.Option("--batch-size", metavar="N", min=1, help="Questions answered at once.")]
Budget = Annotated[float, typer.Option("--budget", metavar="B", min=0.0, max=1.0, help="The knapsack's budget b.")]
Threshold = Annotated[
    float, typer.Option("--threshold", metavar="λ", min=0.001, max=1.0, help="The dual rule's threshold.")
]


def command(
    task: Task = None,
    prompts: Prompts = None,
    data_dir: DataDir = None,
    limit: Limit = 100,
    max_new_tokens: MaxNewTokens = 256,
    batch_size: BatchSize = 16,
    budget: Budget = 0.9,
    threshold: Threshold = 0.4,
    accuracy: Annotated[
        bool, typer.Option("--accuracy", help="Also answer under primal, dual, the exact optimum and the LP.")
    ] = False,
    compare: Annotated[
        list[str] | None,
        typer.Option("--compare", metavar="RULE", help="With --accuracy, answer under this rule too; may be repeated."),
    ] = None,
    sampled: Annotated[
        bool, typer.Option("--sample", help="Answer by sampling at temperature 1, not greedily.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also write the JSON to a file.")
    ] = None,
    as_json: options.Json = False,
    pair: options.Pair = None,
    base: options.Base = None,
    aligned: options.Aligned = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of the random numbers.")] = 0,
) -> None:
    """Measure how close primal and dual come to the exact optimum of the deferral knapsack, at every position of text
    that the pair writes, and what the optimum would change.
    """
    check_source(task, prompts)
    if compare and not accuracy:
        raise UsageError("--compare adds rules to --accuracy: give both.")
    from kad.rules import Primal, parse_rule

    others = [parse_rule(rule) for rule in compare or ()]
    model = loading.load_model(
        pair, base, aligned, dtype=dtype, device=device, trust_remote_code=trust_remote_code
    )  # fmt: skip
    tokenizer = loading.load_tokenizer(model)
    questions = load_questions(tokenizer, task, prompts, data_dir, limit)

    from kad.figures.analysis import accuracies, approximation_on, summarise
    from kad.figures.answers import answer

    stdio.message(f"answering {len(questions)} questions under {Primal(budget)}")
    text = answer(
        model, tokenizer, questions, Primal(budget),
        max_new_tokens=max_new_tokens, batch_size=batch_size, sampled=sampled, seed=seed,
    )  # fmt: skip
    stdio.message(f"solving the knapsacks of {text.tokens} positions")
    rows = approximation_on(model, text.answers, budget=budget, threshold=threshold)
    result: dict[str, Any] = {
        "task": str(prompts or task or "tiny"),
        "questions": len(questions),
        "sampled": sampled,
        "seed": seed,
        **summarise(rows, budget=budget, threshold=threshold),
        "accuracy": None,
    }
    if accuracy:
        result["accuracy"] = accuracies(
            model, tokenizer, questions, budget=budget, threshold=threshold,
            max_new_tokens=max_new_tokens, batch_size=batch_size, sampled=sampled, seed=seed,
            others=others, progress=stdio.message,
        )  # fmt: skip
    if output is not None:
        output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if as_json:
        stdio.print_json(result)
    else:
        stdio.stdout().print(tables(result))


def check_source(task: str | None, prompts: Path | None) -> None:
    """Questions come from a task or from a file. Raises UsageError: from both."""
    if task is not None and prompts is not None:
        raise UsageError("Give --task or --prompts, not both.")


def load_questions(
    tokenizer: Any, task: str | None, prompts: Path | None, data_dir: Path | None, limit: int
) -> list[Question]:
    """The questions that the options name, in the aligned model's chat form.

    Raises:
        UsageError: an unknown task, or a file without a question. MissingExtraError: a task without lm-eval.
    """
    if prompts is not None:
        return _from_file(tokenizer, prompts, limit)
    return _tiny(tokenizer, limit) if task in (None, "tiny") else _from_task(tokenizer, str(task), data_dir, limit)


def _from_file(tokenizer: Any, path: Path, limit: int) -> list[Question]:
    from kad.figures.answers import Question

    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from error
    if not lines:
        raise UsageError(f"{path} has no question: put one on each line.")
    return [Question(_chat(tokenizer, [{"role": "user", "content": line}])) for line in lines[:limit]]


def _tiny(tokenizer: Any, limit: int) -> list[Question]:
    from kad.figures.answers import Question
    from kad.tiny.problems import problems

    drawn = problems("held-out", limit)
    return [Question(_chat(tokenizer, problem.messages()), problem.is_correct) for problem in drawn]


def _from_task(tokenizer: Any, name: str, data_dir: Path | None, limit: int) -> list[Question]:
    from kad.evaluation.tasks.task import chat_renderer, load_tasks
    from kad.figures.answers import Question

    def marker(task: Any, document: dict[str, Any]) -> Callable[[str], bool]:
        return lambda text: bool(task.mark(document, text)["strict"])

    return [
        Question(question.prompt, marker(task, question.document))
        for task in load_tasks([name], limit=limit, data_dir=data_dir)
        for question in task.questions(chat_renderer(tokenizer))
    ]


def _chat(tokenizer: Any, messages: Sequence[dict[str, str]]) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError("The aligned model's tokenizer has no chat template, so questions cannot be put to it.")
    text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    return text


def tables(result: dict[str, Any]) -> RenderableType:
    """The result for people."""
    from rich.console import Group
    from rich.table import Table

    spread = Table("", "mean", "median", "90 %", "99 %", "max", box=None, header_style="dim", pad_edge=False)
    for column in spread.columns[1:]:
        column.justify = "right"
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

"""`kad tune`: choose a rule's parameter on development questions and write it into the pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from kad.cli import evaluation_runs as shared
from kad.cli import info, stdio
from kad.cli.common import Json, ModelOptions
from kad.cli.flatten import Without
from kad.cli.pack import write_card_of
from kad.cli.sweep import DEVELOPMENT, Axis, Grid
from kad.errors import KadError, UsageError
from kad.evaluation.run_options import RunOptions, TaskOptions
from kad.options import Option
from kad.pair.sources import CARD_FILES, has_card
from kad.words import counted

if TYPE_CHECKING:
    from kad.evaluation.tasks.task import Task
    from kad.evaluation.tuning import Choice

EXAMPLES = (
    "kad tune --pair pair/ --rule dual --grid 0.1:0.9:0.1 --tasks kad_gsm8k_development --limit 200 --out runs/tune",
    "kad tune --pair pair/ --rule dual --grid 0.2:0.6:0.1 --objective speed --floor 0.8 --speculative --out runs/speed",
)

OBJECTIVES = ("accuracy", "speed")
_RUN = RunOptions(diagnostics=False)

Objective = Annotated[
    str, Option("Choose the most accurate value, or the fastest that reaches --floor.", allowed=OBJECTIVES)
]
Floor = Annotated[float | None, Option("The accuracy that the fastest value must reach.", "A", allowed="[0, 1]")]
Metric = Annotated[
    str | None, Option("Which accuracy to use: a metric of the tasks.", "NAME", shown="strict, or the task's first")
]
OnTestSplit = Annotated[bool, Option("Allow test questions. The result on them is then worth nothing.")]
Write = Annotated[bool, Option("Write the chosen rule into the pair folder.")]
ShowProbe = Annotated[bool, Option("Then show where the models disagree, as kad info --probe. It loads them again.")]


def command(
    *,
    out: shared.RunFolder,
    grid: Grid,
    axis: Axis,
    objective: Objective = "accuracy",
    floor: Floor = None,
    metric: Metric = None,
    on_test_split: OnTestSplit = False,
    write: Write = True,
    probe: ShowProbe = True,
    models: Annotated[ModelOptions, Without("base", "aligned", "rule", "engine", "engine_options")],
    tasks: TaskOptions = DEVELOPMENT,
    run: Annotated[RunOptions, Without("diagnostics")] = _RUN,
    as_json: Json = False,
) -> None:
    """Choose a parameter of a rule on development questions.

    The command says how sure the choice is, writes the rule into the pair, and shows whether the models fit.
    """
    from kad.evaluation.tuning import (
        WINDOW,
        check_objective,
        choose,
        make_grid,
        measure_speeds,
        refuse_test_splits,
        write_choice,
    )

    check_objective(objective, floor)
    own_pair = _own_pair(models.pair) if write else None
    carded = own_pair is not None and has_card(own_pair)
    if axis.parameter == WINDOW:
        raise UsageError("A pair's rule has no window to write. Use kad sweep for num_draft_tokens.")
    points = make_grid(axis.rule, axis.parameter, grid, speculative=axis.speculative)
    models.check()
    shared.check(out, run)
    from kad.evaluation.results.storage import read_samples
    from kad.evaluation.tasks.task import load_tasks
    from kad.figures.probe import PROMPTS

    few = len(PROMPTS)
    first_rows = load_tasks(
        tasks.tasks, limit=min(few, tasks.limit or few), data_dir=tasks.data_dir, include_path=tasks.include_path
    )
    refuse_test_splits(first_rows, on_test_split)
    for task in first_rows:
        if metric is not None and metric.partition(",")[0] not in task.metrics:
            known = ", ".join(sorted(task.metrics))
            raise UsageError(f"{task.info.name} has no metric {metric!r}. Choose --metric from: {known}.")
    plan = shared.make_plan(models, tasks, run, [point.method for point in points], out)
    shared.execute(plan, out)
    speeds = None
    if objective == "speed":
        stdio.message(f"measuring the speed of {counted(len(points), 'value')} side by side")
        speeds = measure_speeds(plan)
    records = list(read_samples(out))
    choice = choose(points, records, objective=objective, floor=floor, metric=metric, speeds=speeds, seed=run.seed)
    chosen = str(next(point.method.rule for point in points if point.value == choice.chosen.value))
    if own_pair is not None:
        write_choice(own_pair, chosen, choice, [task.info.name for task in first_rows])
        stdio.message(f"wrote {chosen} into {own_pair}")
        if carded:
            write_card_of(replace(models, pair=str(own_pair)))
            stdio.message(f"wrote {own_pair / CARD_FILES[0]} anew")
    fit = _probe(models, chosen, first_rows, run.engine) if probe else None
    if as_json:
        stdio.print_json({**asdict(choice), "rule": chosen, "written": own_pair is not None, "probe": fit})
    else:
        _show(choice)
        stdio.stdout().print(stdio.facts(info.probe_lines(fit)))


def _probe(models: ModelOptions, rule: str, tasks: Sequence[Task], engine: str) -> dict[str, Any] | None:
    """What the pair does on the questions under the chosen rule. None, after a note, if it cannot be measured."""
    from kad.figures.probe import PROMPTS

    try:
        if engine == "vllm":
            raise UsageError("vLLM gives no logits. Use kad info --probe.")
        rows = [[question.conversation for question in task.questions(lambda messages: "")] for task in tasks]
        # One question of each task in turn.
        turns = [row[turn] for turn in range(max(map(len, rows))) for row in rows if turn < len(row)]
        return info.probed(replace(models, rule=rule), turns[: len(PROMPTS)], thinking=False)
    except KadError as error:
        stdio.note(f"no probe: {error}")
        return None


def _own_pair(pair: str | None) -> Path:
    """The pair folder for the rule. A wrong one is refused before anything runs."""
    if pair is None or pair == "tiny" or not (Path(pair) / "config.json").is_file():
        raise UsageError(
            f"The rule is written into a pair folder of your own, but --pair is {pair or 'tiny'}. "
            "Make one with kad pack, or give --no-write to only look."
        )
    return Path(pair)


def _show(choice: Choice) -> None:
    from rich.table import Column, Table

    wins = "chance of being best" if choice.objective == "accuracy" else "chance of being fastest"
    floor = [] if choice.floor is None else ["chance of reaching the floor"]
    columns = (
        Column(name, justify="right") for name in ("value", f"accuracy ({choice.metric})", "tok/s", wins, *floor)
    )
    table = Table(*columns, title=f"{choice.questions} questions, objective {choice.objective}", title_justify="left")
    for candidate in choice.candidates:
        cells = [f"{100 * candidate.accuracy:.1f} %", f"{candidate.throughput:.1f}", f"{100 * candidate.chance:.0f} %"]
        if candidate.meets_floor is not None:
            cells.append(f"{100 * candidate.meets_floor:.0f} %")
        table.add_row(str(candidate.value), *cells, style="bold" if candidate == choice.chosen else None)
    stdio.stdout().print(table)
    stdio.stdout().print(f"{choice.chosen.value} is {choice.reason}.", soft_wrap=True)

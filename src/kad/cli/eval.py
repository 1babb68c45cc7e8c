"""`kad eval`: methods on tasks, resumable, with intervals and paired differences."""

from __future__ import annotations

from typing import Annotated

from kad.cli import evaluation_runs as shared
from kad.cli.common import Json, ModelOptions
from kad.cli.flatten import Without
from kad.evaluation.methods import parse_methods
from kad.evaluation.run_options import RunOptions, TaskOptions
from kad.method import defaults
from kad.method.rules import parse_rule
from kad.options import Option
from kad.pair.sources import Source

EXAMPLES = (
    "kad eval --tasks kad_tiny --limit 100 --out runs/tiny",
    'kad eval --pair pair/ --tasks kad_gsm8k,kad_svamp --methods "base;aligned;dual;primal;nudging" --out runs/math',
    'kad eval --tasks kad_tiny --methods "dual@speculative;dual@speculative:num_draft_tokens=4" --out runs/windows',
)

Methods = Annotated[
    str,
    Option(
        "Separated by ';': base, base=MODEL (asked by the chat template of MODEL), aligned, reference, oracle=MODEL, "
        "pair (the pair under its own rule, or --rule), or any rule. A composition decodes speculatively with "
        "@speculative behind it, or @speculative:num_draft_tokens=N, or @speculative:draft=reference.",
        "METHODS",
    ),
]


def command(
    *,
    out: shared.RunFolder,
    methods: Methods = "base;aligned;pair",
    models: Annotated[ModelOptions, Without("engine", "engine_options")],
    tasks: TaskOptions,
    run: RunOptions,
    baseline: shared.Baseline = None,
    as_json: Json = False,
) -> None:
    """Evaluate methods on tasks, and compare them.

    Every finished answer is on disk at once. A stopped run continues with the same command.
    """
    from kad.evaluation.results.summary import choose_baseline
    from kad.evaluation.results.tables import build_report

    named = parse_methods(methods, parse_rule(defaults.RULE))  # the pair's own rule is not known yet
    choose_baseline([method.name for method in named], baseline)
    for method in named:
        if method.model is not None:
            Source.parse(method.model)
    plan = shared.make_plan(models, tasks, run, methods, out)
    shared.execute(plan, out)
    shared.show_report(build_report([out], baseline), out / "report", as_json)

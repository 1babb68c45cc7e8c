"""`kad eval`: methods on tasks, resumable, with intervals and paired differences."""

from __future__ import annotations

from typing import Annotated

import typer

from kad.cli import evaluation_runs as shared
from kad.cli import options
from kad.errors import UsageError

EXAMPLES = (
    "kad eval --tasks kad_tiny --limit 100 --out runs/tiny",
    'kad eval --pair pair/ --tasks kad_gsm8k,kad_svamp --methods "base;aligned;dual;primal;nudging" --out runs/math',
    'kad eval --tasks kad_tiny --methods "dual@speculative;dual@speculative:num_draft_tokens=4" --out runs/windows',
)

Tasks = Annotated[
    str,
    typer.Option(
        "--tasks",
        metavar="NAMES",
        help="Tasks separated by commas; kad_paper stands for the six published ones.",
    ),
]
Methods = Annotated[
    str,
    typer.Option(
        "--methods",
        metavar="METHODS",
        help=(
            "Separated by ';': base, aligned, reference, oracle=MODEL, or a rule; a rule with @speculative "
            "(:num_draft_tokens=N,draft=aligned|reference) decodes speculatively."
        ),
    ),
]


def command(
    out: shared.Out,
    tasks: Tasks = "kad_tiny",
    methods: Methods = "base;aligned;dual:threshold=0.4;primal:budget=0.9;nudging:threshold=0.4",
    pair: options.Pair = None,
    base: options.Base = None,
    aligned: options.Aligned = None,
    reference: options.Reference = None,
    deferral_temperature: options.DeferralTemperature = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    limit: shared.Limit = None,
    data_dir: shared.DataDir = None,
    samples: shared.Samples = 1,
    seed: shared.RunSeed = 0,
    temperature: shared.Temperature = None,
    max_new_tokens: shared.MaxNewTokens = None,
    batch_size: shared.BatchSize = 8,
    engine: shared.EngineOption = "transformers",
    engine_option: shared.EngineOptions = None,
    diagnostics: shared.Diagnostics = True,
    baseline: shared.Baseline = None,
    json: options.Json = False,
) -> None:
    """Evaluate methods on tasks. Every finished answer is on disk at once; the same command resumes a stopped run."""
    from kad.evaluation.methods import parse_methods
    from kad.evaluation.results.report import build_report
    from kad.evaluation.results.summary import choose_baseline

    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    if not names:
        raise UsageError("--tasks names no task; try kad_tiny or kad_paper")
    parsed = parse_methods(methods)
    choose_baseline([method.name for method in parsed], baseline)
    plan = shared.make_plan(
        pair=pair,
        base=base,
        aligned=aligned,
        reference=reference,
        deferral_temperature=deferral_temperature,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
        methods=tuple(parsed),
        tasks=names,
        limit=limit,
        samples=samples,
        seed=seed,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        data_dir=data_dir,
        engine=engine,
        engine_option=engine_option,
        diagnostics=diagnostics,
    )
    shared.execute(plan, out)
    shared.show_report(build_report([out], baseline), out / "report", json)

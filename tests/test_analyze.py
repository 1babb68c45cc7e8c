"""What `kad analyze` measures: each column against brute force, the summary, the command."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import kad
import oracle
from conftest import make_tokenizer
from kad.cli.main import app
from kad.errors import UsageError
from kad.figures.analysis import CheckedPrompt, accuracies, answer, approximation_on, summarize
from kad.figures.approximation import approximation, concatenate
from kad.rules import Primal

BUDGET, THRESHOLD = 0.8, 0.3


@pytest.fixture(scope="module")
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second = (2 * torch.randn(25, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    return first, second


def best_deferral(p: list[float], budget: float) -> tuple[float, ...]:
    """The optimum by trying all."""
    values = oracle_values(p)
    feasible = [
        d for d in product((0.0, 1.0), repeat=len(p)) if sum(a * b for a, b in zip(d, p, strict=True)) <= budget
    ]
    return max(feasible, key=lambda d: sum(a * b for a, b in zip(d, values, strict=True)))


def oracle_values(p: list[float]) -> list[float]:
    import math

    return [-x * math.log(x) for x in p]


def test_columns_are_those_of_brute_force(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    rows = approximation(*logits, budget=BUDGET, threshold=THRESHOLD)
    for row in range(25):
        p, q = (oracle.softmax(x[row].tolist()) for x in logits)
        values = oracle_values(p)
        keeps = {
            "primal": oracle.keep_primal(p, q, BUDGET),
            "dual": oracle.keep_dual(p, q, THRESHOLD),
            "lp": oracle.keep_lp(p, q, BUDGET),
            "exact": [1 - d for d in best_deferral(p, BUDGET)],
        }
        shed = {name: sum(v * (1 - k) for v, k in zip(values, keep, strict=True)) for name, keep in keeps.items()}
        pi = {name: oracle.cascade(p, q, keep) for name, keep in keeps.items()}

        def column(name: str, row: int = row) -> float:
            return float(getattr(rows, name)[row])

        assert column("optimum") == pytest.approx(shed["exact"], abs=1e-6)
        assert column("dantzig") == pytest.approx(shed["lp"], abs=1e-9)
        assert column("primal_value") == pytest.approx(shed["primal"], abs=1e-9)
        assert column("dual_value") == pytest.approx(shed["dual"], abs=1e-9)
        assert column("primal_gap") == pytest.approx(shed["exact"] - shed["primal"], abs=2e-6)
        assert column("head") == sum(keeps["primal"])
        assert column("unfilled") == pytest.approx(BUDGET - oracle.deferred_mass(p, keeps["primal"]))
        weight = oracle.deferred_mass(p, keeps["dual"])
        assert column("dual_weight") == pytest.approx(weight)
        if weight <= BUDGET:
            assert column("dual_gap") == pytest.approx(max(0.0, shed["exact"] - shed["dual"]), abs=2e-6)
        else:
            assert column("dual_gap") != column("dual_gap")
        assert column("exact_keeps_top") == keeps["exact"][p.index(max(p))]
        for name in keeps:
            assert column(f"acceptance_{name}") == pytest.approx(oracle.acceptance(pi[name], q), abs=1e-6)
        for name in ("exact", "lp"):
            assert column(f"{name}_tv") == pytest.approx(1 - oracle.acceptance(pi[name], pi["primal"]), abs=1e-6)


def test_the_dual_loses_nothing_at_the_mass_it_defers(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    rows = approximation(*logits, budget=BUDGET, threshold=THRESHOLD)
    assert float(rows.dual_own_gap.abs().max()) < 1e-12


def test_summary_is_of_the_columns(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    rows = approximation(*logits, budget=BUDGET, threshold=THRESHOLD)
    halves = [
        approximation(*(x[part] for x in logits), budget=BUDGET, threshold=THRESHOLD)
        for part in (slice(9), slice(9, 25))
    ]
    for name in rows.__dataclass_fields__:
        assert torch.allclose(getattr(concatenate(halves), name), getattr(rows, name), equal_nan=True), name
    summary = summarize(rows, budget=BUDGET, threshold=THRESHOLD)
    assert summary["positions"] == 25 == sum(row["positions"] for row in summary["unfilled_by_confidence"])
    assert summary["primal"]["gap"]["mean"] == pytest.approx(float(rows.primal_gap.mean()))
    assert summary["primal"]["dantzig_gap"]["mean"] >= summary["primal"]["gap"]["mean"]
    assert summary["dual"]["within_budget"] == float((rows.dual_weight <= BUDGET).double().mean())
    json.dumps(summary, allow_nan=False)


def test_accuracy_of_all_four(model: kad.KadForCausalLM) -> None:
    questions = [CheckedPrompt(text, lambda answer: "a" in answer) for text in ("one", "two and")]
    marks = accuracies(
        model, make_tokenizer(), questions,
        budget=0.9, threshold=0.2, max_new_tokens=8, batch_size=2, sampled=True, seed=1,
    )  # fmt: skip
    assert set(marks) == {"primal", "dual", "exact", "lp"}
    assert set(marks.values()) <= {0.0, 0.5, 1.0}


def test_positions_of_answers_are_scored_once_each(model: kad.KadForCausalLM) -> None:
    text = answer(model, make_tokenizer(), [CheckedPrompt("one"), CheckedPrompt("two")], Primal(0.9), max_new_tokens=6)
    done: list[int] = []
    rows = approximation_on(model, text.answers, budget=0.9, threshold=0.4, progress=done.append)
    assert len(rows.bound) == text.tokens
    assert done == [1, 1]
    assert text.accuracy is None


class TestCommand:
    """`kad analyze` on the embedded pair."""

    def call(self, *arguments: str) -> Any:
        return CliRunner().invoke(app, ["analyze", *arguments], standalone_mode=False)

    def test_json(self, tmp_path: Path) -> None:
        path = tmp_path / "analysis.json"
        compare = ("--compare", "dual:threshold=0.6", "--compare", "confidence_bet")
        result = self.call("--limit", "2", "--max-new-tokens", "16", "--accuracy", *compare, "--json", "-o", str(path))
        assert result.exception is None
        printed = json.loads(result.stdout)
        assert json.loads(path.read_text()) == printed
        assert printed["questions"] == 2
        rules = {"primal", "dual", "exact", "lp", "dual:threshold=0.6", "confidence_bet:margin=0.2"}
        assert set(printed["accuracy"]) == rules
        assert 0 <= printed["largest_unproven"] < 1e-4

    def test_tables(self) -> None:
        result = self.call("--limit", "1", "--max-new-tokens", "8")
        assert "primal is optimal at" in result.stdout
        assert "TV exact to primal" in result.stdout

    def test_prompts_from_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "prompts.txt").write_text("Mia has 3 apples.\n\nTom has 4.\n")
        arguments = ("--prompts", str(tmp_path / "prompts.txt"), "--max-new-tokens", "4", "--json")
        assert json.loads(self.call(*arguments).stdout)["questions"] == 2

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--task", "tiny", "--prompts", "x.txt"), "Give --task or --prompts, not both"),
            (("--compare", "aligned_only"), "--compare adds rules to --accuracy"),
            (("--prompts", "no-such-file.txt"), "Cannot read no-such-file.txt"),
        ],
    )
    def test_bad_use(self, arguments: tuple[str, ...], message: str) -> None:
        result = self.call(*arguments)
        assert isinstance(result.exception, UsageError)
        assert message in str(result.exception)

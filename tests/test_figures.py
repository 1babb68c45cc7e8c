"""The figures' data against the oracle; the drawings only for being there."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import kad
import oracle
from conftest import make_model, make_tokenizer
from kad.cli.main import app
from kad.engines.transformers.model import TransformersModel
from kad.errors import UsageError
from kad.figures.analysis import CheckedPrompt, answer
from kad.figures.approximation import LAMBDAS, approximation, entropy_difference
from kad.figures.data import FigureOptions, collect, entropy_over_threshold, measure
from kad.rules import parse_rule

SETTINGS = FigureOptions(max_new_tokens=8, batch_size=2)
QUESTIONS = [
    CheckedPrompt(text, lambda answer: len(answer) % 2 == 0) for text in ("one and two", "three?", "fourth one")
]


@pytest.fixture(scope="module")
def pair(models_: dict[str, Any]) -> kad.KadForCausalLM:
    pair = kad.KadForCausalLM.from_models(**models_)
    pair.tokenizer = make_tokenizer()
    return pair


@pytest.fixture(scope="module")
def data(pair: kad.KadForCausalLM) -> dict[str, Any]:
    return collect(pair, make_tokenizer(), QUESTIONS, oracle=TransformersModel(make_model(9)), settings=SETTINGS)


def rows_of(pair: kad.KadForCausalLM, rule: str, composed: str | None = None) -> list[tuple[list[float], ...]]:
    """p, q*, pi (of that rule or another) at every position of the rule's answers, by full forwards and softmax."""
    rows = []
    answers = answer(pair, make_tokenizer(), QUESTIONS, parse_rule(rule), max_new_tokens=8, batch_size=3)
    for item in answers.answers:
        ids = torch.tensor([item.prompt_ids + item.token_ids])
        with torch.inference_mode(), pair.using(composed or rule):
            parts = [model(ids).logits[0, len(item.prompt_ids) - 1 : -1] for model in (pair.base, pair.aligned, pair)]
        rows += [tuple(oracle.softmax(row.tolist()) for row in triple) for triple in zip(*parts, strict=True)]
    return rows


def test_every_figure_is_there(data: dict[str, Any]) -> None:
    assert list(data) == [
        "1-distributions", "2-acceptance", "3-entropy-difference", "4-critical-item", "5-accuracy-throughput",
        "6-optimality-gap", "7-deferred-mass",
    ]  # fmt: skip
    json.dumps(data, allow_nan=False)


def test_distributions_compose(data: dict[str, Any]) -> None:
    figure = data["1-distributions"]
    for p, q, pi, kept in zip(*(figure[name] for name in ("p", "p_aligned", "pi", "kept")), strict=True):
        assert kept in (0.0, p)
        assert kept == (p if p >= 0.4 else 0.0)
        assert pi == pytest.approx(kept + figure["deferred_mass"] * q, rel=1e-4, abs=1e-6)


def test_the_first_figure_shows_two_first_tokens_that_both_stand(
    pair: kad.KadForCausalLM, data: dict[str, Any]
) -> None:
    """Of all positions the one where p's and q*'s first tokens differ, and have most in pi."""

    def both(p: list[float], q: list[float], pi: list[float]) -> float:
        first, other = p.index(max(p)), q.index(max(q))
        return 0.0 if first == other else min(pi[first], pi[other])

    figure = data["1-distributions"]
    found = both(*(figure[name] for name in ("p", "p_aligned", "pi")))
    texts = [*rows_of(pair, "dual:threshold=0.4"), *rows_of(pair, "base_only", composed="dual:threshold=0.4")]
    assert found == pytest.approx(max(both(*row) for row in texts), abs=1e-4)
    assert found > 0.01


def test_drafts_were_tried(pair: kad.KadForCausalLM, data: dict[str, Any]) -> None:
    rules = {row["rule"]: row for row in data["2-acceptance"]["rules"]}
    assert rules["aligned_only"]["empirical"] == 1.0
    dual = rules["dual:threshold=0.4"]
    assert 0 < dual["empirical"] < 1
    assert dual["drafts"] >= 8
    untried = measure(pair, make_tokenizer(), QUESTIONS, parse_rule("dual"), replace(SETTINGS, speculative=0))
    assert untried.drafts == (0, 0)


def test_the_band_is_that_of_the_mean_over_answers() -> None:
    generator = torch.Generator().manual_seed(0)
    answers = [torch.randn(50, n, generator=generator, dtype=torch.float64) for n in (3, 5, 2)]
    figure = entropy_over_threshold([(sums, sums) for sums in answers])
    means = [float(sums[7].mean()) for sums in answers]
    middle = sum(means) / 3
    expected = math.sqrt(sum((mean - middle) ** 2 for mean in means) / 2 / 3)
    assert figure["sum_error"][7] == pytest.approx(expected)
    assert figure["sum_difference"][7] == pytest.approx(float(torch.cat(answers, dim=-1)[7].mean()))
    assert entropy_over_threshold([(answers[0], answers[0])])["sum_error"] is None


@pytest.mark.parametrize("rule", ["dual:threshold=0.4", "nudging:threshold=0.4", "aligned_only", "implicit_reward"])
def test_acceptance_is_the_mean_overlap(pair: kad.KadForCausalLM, data: dict[str, Any], rule: str) -> None:
    rows = rows_of(pair, rule)
    expected = math.fsum(oracle.acceptance(pi, q) for _, q, pi in rows) / len(rows)
    (got,) = [row["acceptance"] for row in data["2-acceptance"]["rules"] if row["rule"].startswith(rule)]
    assert got == pytest.approx(expected, abs=1e-4)


def test_entropy_difference_is_that_of_the_deferred_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    base, target = (3 * torch.randn(6, 20, generator=generator) for _ in range(2))
    sums, conditionals = entropy_difference(base, target)
    for index, threshold in [(4, 0.1), (19, 0.4), (49, 1.0)]:
        assert LAMBDAS[index] == threshold
        for row in range(6):
            p, t = oracle.softmax(base[row].tolist()), oracle.softmax(target[row].tolist())
            deferred = [v for v, x in enumerate(p) if x < threshold]
            partial = [-math.fsum(x[v] * math.log(x[v]) for v in deferred) for x in (p, t)]
            assert float(sums[index, row]) == pytest.approx(partial[0] - partial[1], abs=1e-6)
            masses = [math.fsum(x[v] for v in deferred) for x in (p, t)]
            given = [a / mass + math.log(mass) for a, mass in zip(partial, masses, strict=True)]
            assert float(conditionals[index, row]) == pytest.approx(given[0] - given[1], abs=1e-6)


def test_critical_item_bounds_the_unfilled_budget(pair: kad.KadForCausalLM, data: dict[str, Any]) -> None:
    figure = data["4-critical-item"]
    expected = []
    for p, q, _ in rows_of(pair, "dual:threshold=0.4"):
        keep = oracle.keep_primal(p, q, 0.9)
        expected.append(0.9 - oracle.deferred_mass(p, keep))
    assert figure["unfilled"] == pytest.approx(expected, abs=1e-4)
    assert all(0 <= gap < item for gap, item in zip(figure["unfilled"], figure["critical"], strict=True))


def test_ties_count_as_one_critical_item() -> None:
    """Half-precision logits tie; the tied tokens are kept together, so together they bound the gap."""
    logits = torch.tensor([[2.0, 2.0, 0.0, -1.0]])
    rows = approximation(logits, logits, budget=0.5)
    p = oracle.softmax(logits[0].tolist())
    assert float(rows.critical) == pytest.approx(2 * p[0])
    assert float(rows.unfilled) < float(rows.critical)


def test_accuracy_and_throughput(pair: kad.KadForCausalLM, data: dict[str, Any]) -> None:
    for row in data["5-accuracy-throughput"]["rules"]:
        rule = parse_rule(row["rule"])
        answers = answer(pair, make_tokenizer(), QUESTIONS, rule, max_new_tokens=8, batch_size=2)
        assert row["accuracy"] == answers.accuracy == sum(len(a.text) % 2 == 0 for a in answers.answers) / 3
        assert row["tokens_per_second"] > 0


def test_gap_quantiles_rise_from_zero(data: dict[str, Any]) -> None:
    figure = data["6-optimality-gap"]
    for name, gaps in figure["gap"].items():
        if gaps is not None:
            assert gaps == sorted(gaps)
            assert gaps[0] >= -1e-12
            if "at the mass it defers" in name:
                assert gaps[-1] < 1e-9


def test_alpha_curve_is_the_mean_over_answers(pair: kad.KadForCausalLM, data: dict[str, Any]) -> None:
    curve = data["7-deferred-mass"]["rules"]["dual:threshold=0.4"]
    answers = answer(pair, make_tokenizer(), QUESTIONS, parse_rule("dual"), max_new_tokens=8, batch_size=2).answers
    alphas = [oracle.deferred_mass(p, oracle.keep_dual(p, q, 0.4)) for p, q, _ in rows_of(pair, "dual")]
    starts = [sum(len(a.token_ids) for a in answers[:index]) for index in range(3)]
    for place, (mean, count) in enumerate(zip(curve["mean"], curve["answers"], strict=True)):
        there = [alphas[start + place] for start, a in zip(starts, answers, strict=True) if place < len(a.token_ids)]
        assert count == len(there)
        assert mean == pytest.approx(sum(there) / count, abs=1e-4)


def test_batches_do_not_change_answers(pair: kad.KadForCausalLM) -> None:
    one, all_ = (
        answer(pair, make_tokenizer(), QUESTIONS, parse_rule("primal"), max_new_tokens=8, batch_size=size).answers
        for size in (1, 3)
    )
    assert [item.token_ids for item in one] == [item.token_ids for item in all_]


def test_files_hold_what_was_drawn(data: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from kad.figures.drawing import write_figures

    paths = write_figures(data, tmp_path)
    assert sorted(path.name for path in paths) == sorted(
        f"{n}.{kind}" for n in data for kind in ("json", "pdf", "png", "svg")
    )
    for name, values in data.items():
        assert json.loads((tmp_path / f"{name}.json").read_text()) == {"schema": "kad-figure/2", **values}
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / f"{name}.svg").read_text()
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    pictures = [tmp_path / f"4-critical-item.{kind}" for kind in ("pdf", "svg")]
    first = [path.read_bytes() for path in pictures]
    write_figures({"4-critical-item": data["4-critical-item"]}, tmp_path)
    assert [path.read_bytes() for path in pictures] == first


def test_without_the_big_aligned_model_there_is_no_third_figure(pair: kad.KadForCausalLM) -> None:
    assert "3-entropy-difference" not in collect(pair, make_tokenizer(), QUESTIONS[:1], settings=SETTINGS)


def test_no_questions_no_figures(pair: kad.KadForCausalLM) -> None:
    with pytest.raises(UsageError, match="at least one question"):
        collect(pair, make_tokenizer(), [])


def test_command_draws_the_embedded_pair(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    arguments = ["figures", "-o", str(tmp_path), "--limit", "1", "--max-new-tokens", "16", "--json"]
    result = CliRunner().invoke(app, arguments, standalone_mode=False)
    assert result.exception is None
    printed = json.loads(result.stdout)
    assert len(printed["figures"]) == 7
    assert len(printed["files"]) == 28
    assert all(Path(path).stat().st_size > 0 for path in printed["files"])

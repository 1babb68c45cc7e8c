"""The method `pair`: the pair under its own rule and deferral temperature, and what a run stores of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import kad
from kad.cli.main import app
from kad.evaluation.results.storage import read_samples

RULE, TEMPERATURE = "primal:budget=0.6", 3.0


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def pair(folders: dict[str, Path], tmp_path: Path) -> Path:
    models = {role: str(folder) for role, folder in folders.items()}
    composed = kad.KadForCausalLM.from_models(**models, rule=RULE, deferral_temperature=TEMPERATURE)
    composed.save_pretrained(tmp_path / "pair")
    return tmp_path / "pair"


def evaluate(out: Path, *arguments: object, code: int = 0) -> str:
    command = ["eval", "--out", out, "--limit", 3, "--max-new-tokens", 8, *arguments]
    done = CliRunner().invoke(app, [str(argument) for argument in command])
    assert done.exit_code == code, (done.output, done.exception)
    return str(done.stderr)


def samples(out: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for record in sorted(read_samples(out), key=lambda record: record["question"]):
        found.setdefault(record["method"], []).append(record)
    return found


def quantities(records: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(record["text"], record["deferred_mass"]) for record in records]


def test_the_default_is_the_pair_under_its_own_rule_beside_its_models(pair: Path, tmp_path: Path) -> None:
    stderr = evaluate(tmp_path / "run", "--pair", pair)
    found = samples(tmp_path / "run")
    assert list(found) == ["base", "aligned", "pair"]
    assert f"pair is {RULE}" in stderr
    settings = json.loads((tmp_path / "run" / "settings.json").read_text("utf-8"))
    assert settings["pair_rule"] == RULE
    assert settings["deferral_temperature"] == TEMPERATURE


def test_pair_answers_as_its_rule_at_its_temperature_and_not_otherwise(pair: Path, tmp_path: Path) -> None:
    evaluate(tmp_path / "own", "--pair", pair, "--methods", f"pair;{RULE}")
    own = samples(tmp_path / "own")
    assert quantities(own["pair"]) == quantities(own[RULE])
    evaluate(tmp_path / "cold", "--pair", pair, "--methods", "pair", "--deferral-temperature", 1)
    assert quantities(samples(tmp_path / "cold")["pair"]) != quantities(own["pair"])
    evaluate(tmp_path / "other", "--pair", pair, "--methods", "pair", "--rule", "aligned_only")
    assert [record["deferred_mass"] for record in samples(tmp_path / "other")["pair"]] == pytest.approx([1.0] * 3)


def test_the_papers_order_holds_for_models_alone(pair: Path, tmp_path: Path) -> None:
    """A model alone at a deferral temperature of 0.7 answers as at a temperature of 0.7, and as the rule that is it."""
    methods = "aligned;aligned_only;base;base_only"
    evaluate(tmp_path / "before", "--pair", pair, "--methods", methods, "--deferral-temperature", 0.7)
    before = {name: [record["text"] for record in rows] for name, rows in samples(tmp_path / "before").items()}
    assert before["aligned"] == before["aligned_only"]
    assert before["base"] == before["base_only"]
    evaluate(tmp_path / "after", "--pair", pair, "--methods", methods, "--deferral-temperature", 1, "-t", 0.7)
    evaluate(tmp_path / "one", "--pair", pair, "--methods", methods, "--deferral-temperature", 1, "-t", 1)
    after, one = (
        {name: [record["text"] for record in rows] for name, rows in samples(tmp_path / run).items()}
        for run in ("after", "one")
    )
    assert before == after
    assert all(before[name] != one[name] for name in before)


def test_a_run_is_not_resumed_under_another_rule(pair: Path, tmp_path: Path) -> None:
    evaluate(tmp_path / "run", "--pair", pair, "--methods", "pair")
    stderr = evaluate(tmp_path / "run", "--pair", pair, "--methods", "pair", "--rule", "dual", code=2)
    assert f'pair_rule was "{RULE}", now "dual:threshold=0.4"' in stderr


def test_every_sample_holds_its_prompt(pair: Path, tmp_path: Path) -> None:
    evaluate(tmp_path / "run", "--pair", pair, "--methods", "aligned;pair@speculative")
    found = samples(tmp_path / "run")
    prompts = [record["prompt"] for record in found["aligned"]]
    assert len(set(prompts)) == 3
    assert all("How many" in prompt or "?" in prompt for prompt in prompts)
    assert prompts == [record["prompt"] for record in found["pair@speculative"]]

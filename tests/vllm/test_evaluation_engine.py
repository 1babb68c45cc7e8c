"""The evaluation's vLLM engine: every kind of method, against the Transformers engine where both are deterministic."""

from __future__ import annotations

from typing import Any

import pytest
from evaluation_job import completions
from forks import run_apart

from kad import tiny
from kad.evaluation.engine import Engine, SampleRequest
from kad.evaluation.methods import parse_method
from kad.pair.parts import read_config
from kad.pair.sources import Source

METHODS = (
    "oracle=tiny:big-aligned",
    "dual:threshold=0.4",
    "implicit_reward",
    "dual:threshold=0.4@speculative:num_draft_tokens=3",
    "base=tiny:big-aligned",
)


@pytest.fixture(scope="module")
def drawn() -> Any:
    return run_apart(completions, METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_greedy_texts_are_those_of_transformers(name: str, drawn: dict[str, list[dict[str, Any]]]) -> None:
    references = read_config("tiny").model_sources()
    references |= dict.fromkeys((METHODS[0], METHODS[4]), Source.parse("tiny:big-aligned"))
    engine = Engine(references, options={"dtype": "float32"}, diagnostics=False)
    plain = parse_method(name.partition("@")[0])
    render = engine.renderer(plain)
    requests = [SampleRequest(render(problem.messages()), 0, 60, 0.0) for problem in tiny.problems("development", 3)]
    for ours, theirs in zip(engine.generate(plain, requests), drawn[f"{name} greedy"], strict=True):
        assert (ours.text, ours.finished, ours.tokens) == (theirs["text"], theirs["finished"], theirs["tokens"])


@pytest.mark.parametrize("name", METHODS[:3])
def test_sampled_texts_follow_their_seeds(name: str, drawn: dict[str, list[dict[str, Any]]]) -> None:
    first, second, third, again = (row["text"] for row in drawn[f"{name} sampled"])
    assert first == again
    assert len({first, second, third}) > 1


def test_speculation_is_counted(drawn: dict[str, list[dict[str, Any]]]) -> None:
    for way in ("greedy", "sampled"):
        first, *others = drawn[f"{METHODS[3]} {way}"]
        windows = sum(first["acceptance_lengths"].values())
        assert first["drafted"] == 3 * windows
        assert first["accepted"] == sum(int(k) * count for k, count in first["acceptance_lengths"].items())
        assert 0 < first["accepted"] < first["drafted"]
        assert all(row["drafted"] is None for row in others)
    assert all(row["drafted"] is None for row in drawn[f"{METHODS[1]} greedy"])


def test_auto_is_refused_before_an_engine_starts(drawn: dict[str, Any]) -> None:
    assert "give `num_draft_tokens` a number, not auto" in drawn["refusal"]

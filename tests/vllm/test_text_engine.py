"""`kad.load(engine="vllm")` in the room for text: its answers against those of the Transformers engine."""

from __future__ import annotations

from typing import Any

import pytest
from forks import run_apart
from text_job import GREEDY, MAX_LENGTH, OPTIONS, QUESTIONS, RULES, STOP, answers, plain

import kad

pytestmark = pytest.mark.supports("vLLM", "`kad.generate` and `kad.stream`", rules=())


@pytest.fixture(scope="module")
def answered() -> Any:
    return run_apart(answers)


@pytest.fixture(scope="module")
def model() -> Any:
    return kad.load("tiny", dtype="float32", device="cpu")


@pytest.mark.parametrize("rule", RULES)
def test_greedy_answers_are_those_of_transformers(rule: str, answered: dict[str, Any], model: Any) -> None:
    for question, found in zip(QUESTIONS, answered[rule], strict=True):
        assert found == plain(kad.generate(model, question, sampling=GREEDY, rule=rule, num_draft_tokens=0))


def test_many_at_once_are_those_alone(answered: dict[str, Any]) -> None:
    assert [found["ids"] for found in answered["together"]] == [found["ids"] for found in answered[RULES[0]]]


def test_a_seed_repeats_and_another_differs(answered: dict[str, Any]) -> None:
    first, second, third, again = (found["ids"] for found in answered["sampled"])
    assert first == again
    assert len({tuple(ids) for ids in (first, second, third)}) > 1


def test_a_stop_string_ends_the_text_as_in_transformers(answered: dict[str, Any], model: Any) -> None:
    expected = plain(kad.generate(model, QUESTIONS[0], sampling=STOP, num_draft_tokens=0))
    assert expected["reason"] == "stop_string"
    assert answered["stop string"] == expected


def test_streams_in_turns_keep_apart_and_one_can_be_stopped(answered: dict[str, Any]) -> None:
    first, second = answered["in turns"]
    assert first == answered[RULES[0]][0]
    assert second["reason"] == "interrupted"
    assert second["ids"] == answered[RULES[0]][1]["ids"][: len(second["ids"])]
    assert 5 <= len(second["ids"]) < len(answered[RULES[0]][1]["ids"])
    assert answered["after a stop"] == answered[RULES[0]][2]


def test_drafts_change_no_greedy_text_and_are_counted(answered: dict[str, Any]) -> None:
    counted = answered["drafted"].pop("statistics")
    assert answered["drafted"] == answered[RULES[0]][0]
    assert counted["drafted"] == 3 * counted["windows"] > 0
    assert 0 < counted["accepted"] <= counted["drafted"]
    assert answered["drafts stay"].pop("drafts") == 3
    assert answered["drafts stay"] == answered[RULES[0]][1]


def test_what_vllm_cannot_do_is_refused(answered: dict[str, Any]) -> None:
    said = answered["refusals"]
    assert "give `num_draft_tokens` a number, not auto" in said["auto"]
    assert "runs this pair with `deferral_temperature` 1.0, and 2.0 is asked for" in said["temperature"]
    assert "kad.score needs the models' logits" in said["score"]
    assert "`engine` vllm takes no `device`" in said["device"]
    assert "min_p" in said["min_p"]
    assert "settings have the temperature 0.005" in said["cold"]
    for name in ("setting", "setting of many"):
        assert "ask for encoder_repetition_penalty, which vLLM does not follow" in said[name]
    assert answered["context"] == OPTIONS["max_model_len"]


def test_max_length_counts_each_prompt_of_many(answered: dict[str, Any]) -> None:
    assert [count for count, reason in answered["max_length"] if reason == "length"] == [MAX_LENGTH, MAX_LENGTH]

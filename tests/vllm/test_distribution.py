"""vLLM computes the same pi as Transformers: every rule, mixed in one batch, for prompts of unlike lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import make_family
from transformers import MistralConfig, MistralForCausalLM

from kad.method.distribution import EXCLUDED
from kad.rules import registry

# Both sides are float32 and differ in the order of their sums only. Measured: 2.9e-5 on the tiny pair, 1.3e-4 on the
# random one.
TOLERANCE = 5e-4
RULES = [
    None,
    *registry(),
    "dual:threshold=0.05",
    "primal:budget=0.5",
    "confidence_bet:margin=0.3",
    "mixture:weight=0.9",
]


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 490, (length,), generator=generator).tolist() for length in (1, 7, 40, 90)]


def request(prompt: list[int], rule: str | None, **params: Any) -> dict[str, Any]:
    extra = {"extra_args": {"rule": rule}} if rule else {}
    return {
        "prompt_token_ids": prompt,
        "params": {"max_tokens": 8, "logprobs": 20, "ignore_eos": True, **extra, **params},
    }


def largest_difference(expected: torch.Tensor, got: list[dict[str, float]]) -> float:
    """Between rows of log pi and reported log-probabilities: NaN where either is, infinite where one alone is -inf."""
    values = [
        (row[int(token)].item(), value)
        for row, reported in zip(expected, got, strict=True)
        for token, value in reported.items()
    ]
    exact, found = torch.tensor(values, dtype=torch.float64).unbind(-1)
    differences = torch.where(exact == found, 0.0, (exact - found).abs())
    # Of excluded tokens, whose probability is zero, float32 holds steps of 0.001 only.
    return float(torch.where(torch.maximum(exact, found) < EXCLUDED / 2, differences / 100, differences).amax())


@pytest.mark.parametrize("found", [torch.nan, -torch.inf, -9000.0, -1.001])
@pytest.mark.parametrize("exact", [EXCLUDED, -1.0])
def test_no_wrong_value_is_overlooked(exact: float, found: float) -> None:
    rows = torch.tensor([[exact, -0.5]])
    assert largest_difference(rows, [{"0": exact * (1 + 1e-7), "1": -0.5}]) < TOLERANCE
    assert not largest_difference(rows, [{"0": found, "1": -0.5}]) < TOLERANCE


@pytest.fixture(scope="module", params=["tiny", "random_pair"])
def served(request: pytest.FixtureRequest, engine: Any) -> tuple[Any, list[Any], dict[str, Any]]:
    pair = request.getfixturevalue(request.param)
    batch = [
        request_for
        for prompt in prompts()
        for rule in RULES
        for request_for in (
            globals()["request"](prompt, rule, temperature=0.0, prompt_logprobs=5),
            globals()["request"](prompt, rule, temperature=1.0, seed=7),
        )
    ]
    # Chunks of at most 64 tokens: a prompt of 90 is computed in two steps, between other requests' decoding steps.
    first = [dict(r, params={k: v for k, v in r["params"].items() if k != "prompt_logprobs"}) for r in batch]
    result = engine(pair, [batch, first, first], max_num_batched_tokens=64, block_size=32)
    return pair, batch, result


@pytest.mark.supports("vLLM", "log-probabilities", rules=RULES)
@pytest.mark.supports("vLLM", "greedy", rules=RULES)
def test_log_probabilities_are_those_of_transformers(served: Any, log_pi: Any) -> None:
    pair, batch, result = served
    for asked, answer in zip(batch, result["batches"][0], strict=True):
        output, prompt = answer["outputs"][0], asked["prompt_token_ids"]
        rule = asked["params"].get("extra_args", {}).get("rule")
        rows = log_pi(pair, rule, prompt + output["token_ids"])[len(prompt) - 1 : -1]
        assert largest_difference(rows, output["logprobs"]) < TOLERANCE, rule
        if asked["params"]["temperature"] == 0.0:
            chosen = rows.gather(-1, torch.tensor(output["token_ids"]).unsqueeze(-1)).squeeze(-1)
            # Equal up to a tie within the tolerance.
            assert (rows.amax(-1) - chosen).max() < TOLERANCE, rule


@pytest.mark.supports("vLLM", "prompt log-probabilities", rules=RULES)
def test_prompt_log_probabilities_follow_the_requests_rule(served: Any, log_pi: Any) -> None:
    pair, batch, result = served
    checked = 0
    for asked, answer in zip(batch, result["batches"][0], strict=True):
        prompt, reported = asked["prompt_token_ids"], answer["prompt_logprobs"]
        if reported is None or len(prompt) < 2:
            continue
        rule = asked["params"].get("extra_args", {}).get("rule")
        assert largest_difference(log_pi(pair, rule, prompt)[:-1], reported[1:]) < TOLERANCE, rule
        checked += 1
    assert checked == 3 * len(RULES)


def test_cached_prefixes_change_nothing(served: Any) -> None:
    """The prompts of the third batch are read from the caches of all models."""
    _, batch, result = served
    fresh, again = result["batches"][1:]
    assert any(answer["cached"] > 0 for answer in again)
    for asked, one, two in zip(batch, fresh, again, strict=True):
        if asked["params"]["temperature"] == 0.0:
            assert one["outputs"][0]["token_ids"] == two["outputs"][0]["token_ids"]


def test_rules_do_differ(served: Any) -> None:
    """The batch would prove nothing if all rules gave the same text."""
    _, batch, result = served
    texts = {
        str(asked["params"].get("extra_args")): tuple(answer["outputs"][0]["token_ids"])
        for asked, answer in zip(batch, result["batches"][0], strict=True)
        if len(asked["prompt_token_ids"]) == 40 and asked["params"]["temperature"] == 1.0
    }
    assert len(set(texts.values())) > 3


def test_the_sliding_window_of_one_part(engine: Any, log_pi: Any, tmp_path: Path) -> None:
    """A Mistral beside Llamas, and prompts that are longer than its window."""
    pair = make_family(tmp_path)
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "head_dim": 32}
    config = MistralConfig(
        **shape, num_hidden_layers=2, num_key_value_heads=2, vocab_size=512, sliding_window=8, initializer_range=0.3
    )
    MistralForCausalLM(config).save_pretrained(tmp_path / "base")
    asked = [request(prompt, "base_only", prompt_logprobs=5) for prompt in prompts()[1:]]
    for prompt, answer in zip(prompts()[1:], engine(pair, [asked])["batches"][0], strict=True):
        rows = log_pi(pair, "base_only", prompt)[:-1]
        assert largest_difference(rows, answer["prompt_logprobs"][1:]) < TOLERANCE

"""A pair in vLLM's second model runner, itself: the runner, its sampler and its verification, in Triton's interpreter.

The kernels' code runs on a processor here, one program after the other. What only a GPU can show (captured graphs,
races, compiled kernels) stays unproven.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import POISON, speculation
from test_distribution import RULES, TOLERANCE, largest_difference

SAMPLES = 80


def request(prompt: list[int], rule: str | None = None, **params: Any) -> dict[str, Any]:
    extra = {"extra_args": {"rule": rule}} if rule else {}
    settings = {"temperature": 0.0, "max_tokens": 5, "ignore_eos": True, "logprobs": 20, **extra, **params}
    return {"prompt_token_ids": prompt, "params": settings}


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(10, 490, (length,), generator=generator).tolist() for length in lengths]


def tokens(answer: dict[str, Any]) -> list[int]:
    ids: list[int] = answer["outputs"][0]["token_ids"]
    return ids


def check_log_probabilities(pair: Path, log_pi: Any, batch: list[Any], answers: list[Any]) -> None:
    for asked, answer in zip(batch, answers, strict=True):
        output, prompt = answer["outputs"][0], asked["prompt_token_ids"]
        rule = asked["params"].get("extra_args", {}).get("rule")
        rows = log_pi(pair, rule, prompt + tokens(answer))[len(prompt) - 1 : -1]
        assert largest_difference(rows, output["logprobs"]) < TOLERANCE, rule
        if asked["params"]["temperature"] == 0.0:
            chosen = rows.gather(-1, torch.tensor(tokens(answer)).unsqueeze(-1)).squeeze(-1)
            assert (rows.amax(-1) - chosen).max() < TOLERANCE, rule


@pytest.mark.supports("vLLM", "second model runner", rules=RULES)
def test_every_rule_mixed_in_one_batch(engine: Any, random_pair: Path, log_pi: Any) -> None:
    batch = [request(prompt, rule) for prompt in prompts(1, 40) for rule in RULES]
    batch += [request(prompt, rule, temperature=1.0, seed=7) for prompt in prompts(7) for rule in RULES]
    # Chunks of at most 32 tokens between other requests' single ones. Fewer places than requests: places are reused.
    answers = engine(
        random_pair, [batch], second_runner=True, max_num_batched_tokens=32, max_num_seqs=16, max_model_len=64
    )["batches"][0]
    check_log_probabilities(random_pair, log_pi, batch, answers)
    assert len({tuple(tokens(answer)) for answer in answers}) > len(batch) // 3


@pytest.fixture(scope="module")
def speculative(engine: Any, poisoned_pair: Path) -> tuple[list[Any], list[Any]]:
    """One engine that drafts: greedy requests among failing ones, then one sampled prompt with a seed each, twice."""
    rules = [None, "aligned_only", "base_only", "dual:threshold=0.05", "primal", "mixture", "implicit_reward"]
    good = [request(prompt, rule, max_tokens=8) for prompt in prompts(1, 20) for rule in rules]
    bad = [request([*prompts(9)[0], POISON]), request(prompts(9)[0], allowed_token_ids=[POISON])]
    mixed = [*good[:5], bad[0], *good[5:], bad[1]]
    sampled = [
        request([5, 6, 8], ("dual:threshold=0.02", "implicit_reward")[i % 2], temperature=0.8, max_tokens=3, seed=i)
        for i in range(2 * SAMPLES)
    ]
    again = sampled[:7]
    batches = [mixed, sampled, again]
    options = {"speculative_config": speculation(poisoned_pair), "enable_prefix_caching": False}
    return batches, engine(poisoned_pair, batches, second_runner=True, max_model_len=64, **options)["batches"]


def test_speculation_is_greedy_decoding(speculative: Any, poisoned_pair: Path, log_pi: Any) -> None:
    batch, answers = speculative[0][0], speculative[1][0]
    check_log_probabilities(poisoned_pair, log_pi, batch[:5] + batch[6:-1], answers[:5] + answers[6:-1])


def test_rows_of_nan_fail_their_request_alone(speculative: Any) -> None:
    mixed = speculative[1][0]
    reasons = [answer["outputs"][0]["finish_reason"] for answer in mixed]
    assert [place for place, reason in enumerate(reasons) if reason == "error"] == [5, len(mixed) - 1]
    assert tokens(mixed[5]) == []
    assert tokens(mixed[-1]) == [POISON]


@pytest.mark.parametrize("group", [0, 1])
def test_samples_follow_pi(speculative: Any, poisoned_pair: Path, log_pi: Any, group: int) -> None:
    """At each position the mean log-probability of the tokens drawn is pi's negative entropy, within sampling error."""
    rule = speculative[0][1][group]["params"]["extra_args"]["rule"]
    # One sample in a thousand may meet the damaged token.
    whole = [
        tokens(answer) for answer in speculative[1][1][group::2] if answer["outputs"][0]["finish_reason"] != "error"
    ]
    assert len(whole) > 0.97 * SAMPLES
    drawn = torch.tensor(whole)
    rows = log_pi(poisoned_pair, rule, torch.cat((torch.tensor([[5, 6, 8]]).expand(len(drawn), -1), drawn), dim=-1))
    log_probs = (rows[:, 2:-1] / 0.8).log_softmax(-1)
    for position in range(drawn.shape[1]):
        row = log_probs[:, position]
        chosen = row.gather(-1, drawn[:, position : position + 1]).squeeze(-1)
        assert bool((chosen > -torch.inf).all())
        mean = (row.exp() * row.clamp(min=-1e4)).sum(-1)
        variance = (row.exp() * row.clamp(min=-1e4).square()).sum(-1) - mean.square()
        assert abs((chosen - mean).sum() / variance.sum().sqrt()) < 4.5


def test_a_seed_repeats_a_sampled_text(speculative: Any) -> None:
    """This runner draws drafts, too, from the seed of their request: nothing depends on the rest of the batch."""
    _, many, again = speculative[1]
    assert [tokens(answer) for answer in again] == [tokens(answer) for answer in many[: len(again)]]

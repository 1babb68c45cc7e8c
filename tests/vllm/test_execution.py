"""However vLLM runs a pair - compiled, on several ranks, short of cache, sharded - the text is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kad.pair.sources import resolve_model

RULES = [None, "base_only", "aligned_only", "dual:threshold=0.02", "primal", "implicit_reward"]


def batch(lengths: tuple[int, ...] = (3, 30, 70), tokens: int = 24) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(5)
    return [
        {
            "prompt_token_ids": torch.randint(0, 490, (length,), generator=generator).tolist(),
            "params": {
                "temperature": 0.0,
                "max_tokens": tokens,
                "ignore_eos": True,
                "extra_args": {"rule": rule} if rule else None,
            },
        }
        for rule in RULES
        for length in lengths
    ]


def texts(answers: list[dict[str, Any]]) -> list[list[int]]:
    return [answer["outputs"][0]["token_ids"] for answer in answers]


@pytest.fixture(scope="module")
def eager(engine: Any, random_pair: Path) -> list[list[int]]:
    return texts(engine(random_pair, [batch()])["batches"][0])


def speculation(random_pair: Path, **more: Any) -> dict[str, Any]:
    return {
        "method": "draft_model",
        "model": str(random_pair.parent / "aligned"),
        "num_speculative_tokens": 3,
        "draft_sample_method": "probabilistic",
        **more,
    }


@pytest.mark.supports("vLLM", "compilation", rules=())
def test_compiled(engine: Any, random_pair: Path, eager: list[list[int]]) -> None:
    assert texts(engine(random_pair, [batch()], enforce_eager=False)["batches"][0]) == eager


@pytest.mark.supports("vLLM", "tensor parallelism", rules=())
def test_two_ranks_with_speculation(engine: Any, random_pair: Path, eager: list[list[int]]) -> None:
    got = engine(
        random_pair,
        [batch()],
        environment={"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        tensor_parallel_size=2,
        speculative_config=speculation(random_pair, draft_tensor_parallel_size=2),
    )
    assert texts(got["batches"][0]) == eager


@pytest.mark.supports("vLLM", "preemption", rules=())
@pytest.mark.parametrize("speculate", [False, True])
def test_preemption(engine: Any, random_pair: Path, eager: list[list[int]], speculate: bool) -> None:
    """Too few blocks for all requests at once: some are put back and start over, in all models' caches."""
    got = engine(
        random_pair,
        [batch()],
        block_size=32,
        num_gpu_blocks_override=16,
        max_model_len=128,
        enable_prefix_caching=False,
        disable_log_stats=False,
        **({"speculative_config": speculation(random_pair)} if speculate else {}),
    )
    assert got["counters"]["vllm:num_preemptions"] > 0
    assert texts(got["batches"][0]) == eager


def test_half_precision_on_the_trained_pair(engine: Any, tiny: str, log_pi: Any) -> None:
    """The dtype the pair asks for. Bfloat16 has 8 bits: log-probabilities agree to a few hundredths, not more."""
    asked = batch(lengths=(30,), tokens=8)
    for one in asked:
        one["params"]["logprobs"] = 0
    config = {"method": "draft_model", "model": resolve_model("tiny:small-aligned"), "num_speculative_tokens": 4}
    got = engine(tiny, [asked], dtype="auto", speculative_config=config)["batches"][0]
    differences = []
    for request, answer in zip(asked, got, strict=True):
        output, prompt = answer["outputs"][0], request["prompt_token_ids"]
        rule = (request["params"]["extra_args"] or {}).get("rule")
        rows = log_pi(tiny, rule, prompt + output["token_ids"])[len(prompt) - 1 : -1]
        for row, reported in zip(rows, output["logprobs"], strict=True):
            differences += [abs(row[int(token)].item() - value) for token, value in reported.items()]
    assert sorted(differences)[len(differences) // 2] < 0.05

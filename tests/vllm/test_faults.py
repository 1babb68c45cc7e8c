"""One request may fail; the engine and the other requests go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import POISON, speculation


def request(prompt: list[int], **params: Any) -> dict[str, Any]:
    return {"prompt_token_ids": prompt, "params": {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True, **params}}


@pytest.mark.parametrize("speculate", [False, True])
def test_rows_of_nan_fail_their_request_alone(engine: Any, poisoned_pair: Path, speculate: bool) -> None:
    generator = torch.Generator().manual_seed(11)
    prompts = [torch.randint(10, 490, (length,), generator=generator).tolist() for length in (3, 20, 50, 70)]
    good = [request(prompt, extra_args={"rule": rule}) for prompt in prompts for rule in ("dual", "aligned_only")]
    bad = [
        request([*prompts[0], POISON]),
        request([*prompts[2], POISON, *prompts[1]], temperature=1.0, seed=3, extra_args={"rule": "implicit_reward"}),
        request([POISON, *prompts[3]], prompt_logprobs=2, logprobs=3),
        # A request that makes its own bad row: after its first token there is nothing to draw from.
        request(prompts[1], allowed_token_ids=[POISON]),
    ]
    mixed = [one for pair in zip(good, bad * 2, strict=True) for one in pair]
    options = {"speculative_config": speculation(poisoned_pair)} if speculate else {}
    # 64 tokens a step: longer prompts take two steps.
    alone, together, after = engine(
        poisoned_pair, [good, mixed, good], max_num_batched_tokens=64, enable_prefix_caching=False, **options
    )["batches"]
    texts = [answer["outputs"][0]["token_ids"] for answer in alone]
    assert [answer["outputs"][0]["token_ids"] for answer in together[::2]] == texts
    assert [answer["outputs"][0]["token_ids"] for answer in after] == texts
    assert {answer["outputs"][0]["finish_reason"] for answer in [*alone, *after, *together[::2]]} == {"length"}
    for answer in together[1::2]:
        assert answer["outputs"][0]["finish_reason"] == "error"
    assert [answer["outputs"][0]["token_ids"] for answer in together[1::2]] == [[], [], [], [POISON]] * 2

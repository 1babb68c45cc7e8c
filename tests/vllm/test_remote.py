"""An unmodified vLLM serves the base model, and kad composes here: the text and log pi of the local pair."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from server import Server

import kad
from kad import tiny as family
from kad.errors import RuleError
from kad.tiny.problems import problems

QUESTIONS = [problem.question for problem in problems("held-out", 6)]
GREEDY = kad.Sampling(temperature=0, max_new_tokens=60)
RULES = ("dual:threshold=0.4", "primal:budget=0.9", "confidence_bet:margin=0.2", "relative:margin=0.1")


class Unmodified(Server):
    """vLLM's own server over one model, without kad's plugin."""

    def __init__(self, model: str, log: Path, *options: str) -> None:
        super().__init__(model, log, {"VLLM_PLUGINS": "", "VLLM_CPU_KVCACHE_SPACE": "1"})
        entry = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
        self._command = [*entry, "--port", str(self.port), "--host", "127.0.0.1", *options]


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    log = tmp_path_factory.mktemp("remote") / "log"
    options = ("--served-model-name", "big", "--dtype", "float32", "--max-model-len", "512", "--enforce-eager")
    with Unmodified(family.path("big-base"), log, *options) as server:
        yield kad.load(
            base=f"{server.address}/v1",
            base_tokenizer="tiny:big-base",
            aligned="tiny:small-aligned",
            device="cpu",
            dtype="float32",
        )


@pytest.fixture(scope="module")
def local() -> Any:
    return kad.load("tiny", device="cpu", dtype="float32")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("drafts", [0, 4])
def test_greedy_text_is_that_of_the_local_pair(local: Any, remote: Any, rule: str, drafts: int) -> None:
    for question in QUESTIONS:
        here = kad.generate(local, question, sampling=GREEDY, rule=rule, num_draft_tokens=0)
        there = kad.generate(remote, question, sampling=GREEDY, rule=rule, num_draft_tokens=drafts)
        assert there.token_ids == here.token_ids


def test_log_pi_of_kept_tokens_is_that_of_the_local_pair(local: Any, remote: Any) -> None:
    for question in QUESTIONS[:3]:
        text = kad.generate(local, question, sampling=GREEDY, origins=False).token_ids
        here, there = (kad.score(model, question, text) for model in (local, remote))
        kept = here.base_share > 0.5
        assert kept.sum() > 10
        assert (here.log_pi - there.log_pi)[kept].abs().max() < 1e-4


def test_a_list_ends_where_the_server_says(local: Any, remote: Any) -> None:
    assert remote.context_length == 512
    with torch.no_grad(), pytest.raises(RuleError, match="longest list, of 20 tokens.*--max-logprobs"):
        kad.generate(remote, QUESTIONS[0], sampling=GREEDY, rule="dual:threshold=0.0001", num_draft_tokens=0)

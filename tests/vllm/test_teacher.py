"""A pair as a teacher: TRL's own client and trainer against `kad serve tiny --teacher`."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from datasets import Dataset
from server import Server
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from trl.experimental.server_distillation import ServerDistillationConfig, ServerDistillationTrainer
from trl.generation.vllm_client import VLLMClient

from kad import tiny as family
from kad.engines.vllm import teacher
from kad.pair.folder import resolve
from test_server import ENVIRONMENT

TOLERANCE = 1e-4
OPTIONS = ("--teacher", "--enforce-eager", "--dtype", "float32", "--seed", "0", "--max-model-len", "256")
DRAIN_SECONDS = 120
RULES = (None, "primal:budget=0.9", "aligned_only", "implicit_reward")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log, patience = tmp_path_factory.mktemp("teacher") / "log.txt", ("--shutdown-timeout", str(DRAIN_SECONDS))
    with Server("tiny", log, ENVIRONMENT, *OPTIONS, *patience) as running:
        yield running


@pytest.fixture(scope="module")
def texts(tiny: str) -> list[tuple[list[int], list[int]]]:
    """Prompts, and answers to them: one that the pair may give, one that it would not."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    answers = "First, 98 + 30 = 128. The answer is \\boxed{128}.<|end|>", " Anna said 7 = 8 and went home. Then"
    return [
        (
            tokenizer.apply_chat_template(problem.messages(), add_generation_prompt=True, return_dict=False),
            tokenizer.encode(answer, add_special_tokens=False),
        )
        for problem, answer in zip(family.problems("held-out", 2), answers, strict=True)
    ]


def by_rule(client: VLLMClient, rule: str | None) -> VLLMClient:
    """TRL's client, whose requests carry a rule (docs/teacher.md)."""
    post = client._post
    client._post = lambda url, json, **options: post(url, json=json | {"vllm_xargs": {"rule": rule}}, **options)
    return client


def read(server: Server, texts: Sequence[tuple[list[int], list[int]]], rule: str | None) -> Any:
    client = VLLMClient(base_url=server.address, connection_timeout=60)
    client = client if rule is None else by_rule(client, rule)
    sequences, lengths = [prompt + answer for prompt, answer in texts], [len(prompt) for prompt, _ in texts]
    return client.get_sequence_logprobs(sequences=sequences, prompt_lengths=lengths, top_logprobs=5)


def test_a_trainer_reads_log_pi(server: Server, texts: Any, log_pi: Any, tiny: str) -> None:
    """Of several teachers at one server at a time: the rule of each request decides."""
    with ThreadPoolExecutor(len(RULES)) as pool:
        found = list(pool.map(lambda rule: read(server, texts, rule), RULES))
    for rule, got in zip(RULES, found, strict=True):
        for number, (prompt, answer) in enumerate(texts):
            rows = log_pi(tiny, rule, prompt + answer)[len(prompt) - 1 : -1]
            best = torch.tensor(got["logprobs"][number])
            named = rows.gather(-1, torch.tensor(got["logprob_token_ids"][number]))
            actual = rows.gather(-1, torch.tensor(answer).unsqueeze(-1))
            assert (best - named).abs().max() < TOLERANCE, rule
            assert (best - rows.topk(5).values).abs().max() < TOLERANCE, rule
            assert (torch.tensor(got["actual_logprobs"][number]) - actual).abs().max() < TOLERANCE, rule
    assert len({str(got["actual_logprobs"]) for got in found}) == len(RULES)  # they are different teachers


class AsIf(teacher.Server):
    """The running server, as if the pair's own rule were another one."""

    rule: str | None = None

    def rows(self, rules: Sequence[str | None]) -> list[torch.Tensor]:
        return super().rows([self.rule if rule is None else rule for rule in rules])


def test_the_check_knows_a_teacher(server: Server, tiny: str) -> None:
    asked, config = AsIf(server.address), resolve(tiny)
    assert teacher.problem(asked, config) is None
    for rule in ("implicit_reward", "confidence_bet:margin=0.1", "product:base=2,aligned=0.5"):
        said = teacher.problem(asked, resolve(tiny, rule=rule))
        assert said is not None, rule
        assert f"not log pi of {resolve(tiny, rule=rule).parsed_rule}" in said
        asked.rule = rule
        assert teacher.problem(asked, resolve(tiny, rule=rule)) is None, rule
        asked.rule = None
    asked.rule = "duel"
    assert "/v1/completions was answered with status 400" in str(teacher.problem(asked, config))


def test_a_server_that_is_no_teacher_ends(tmp_path: Path) -> None:
    """Of texts of two tokens no server gives log pi."""
    log = tmp_path / "log.txt"
    server = Server("tiny", log, ENVIRONMENT, *OPTIONS, "--max-model-len", "2")
    server.start()
    try:
        assert server.process.wait(900) == 2, log.read_text()[-4000:]
    finally:
        server.__exit__(None, None, None)
    assert "error: This server is no teacher: /v1/completions was answered with status 400" in log.read_text()


def test_it_says_that_it_was_checked(server: Server) -> None:
    deadline = time.monotonic() + 300
    while f"A teacher at {server.address}" not in server.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_a_student_learns_from_the_pair(server: Server, tmp_path: Path, tiny: str) -> None:
    """TRL's own trainer; the whole of it is benchmarks/teacher.py."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    student = AutoModelForCausalLM.from_pretrained(family.path("big-base"), dtype=torch.float32)
    prompts = [{"prompt": problem.messages()} for problem in family.problems("train", 128)]
    config = ServerDistillationConfig(
        output_dir=str(tmp_path), teacher_model_server_url=server.address, beta=0.0, loss_top_k=5, temperature=1.0,
        max_completion_length=32, per_device_train_batch_size=16, max_steps=8, learning_rate=1e-3, seed=0,
        lr_scheduler_type="constant", logging_steps=1, report_to=[], save_strategy="no", bf16=False, use_cpu=True,
        gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = ServerDistillationTrainer(
        model=student, args=config, train_dataset=Dataset.from_list(prompts), processing_class=tokenizer
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 8
    assert sum(map(float, losses[-2:])) < 0.6 * sum(map(float, losses[:2]))
    trainer.save_model(str(tmp_path / "student"))
    saved = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert saved.chat_template == tokenizer.chat_template
    assert tokenizer.eos_token_id != GenerationConfig.from_pretrained(family.path("big-base")).eos_token_id
    assert tokenizer.eos_token_id in GenerationConfig.from_pretrained(tmp_path / "student").eos_token_id


def test_told_to_stop_it_answers_who_waits_and_ends(server: Server) -> None:
    """The drain under load: 32 texts of 200 tokens. Last, for it ends the server of this module."""
    asked = {"model": "tiny", "prompt": "1 + 1 =", "max_tokens": 200, "ignore_eos": True}

    def ask(_: int) -> Any:
        return httpx.post(f"{server.address}/v1/completions", json=asked, timeout=600)

    with ThreadPoolExecutor(33) as clients:
        waiting = [clients.submit(ask, number) for number in range(32)]
        while server.metric("vllm:num_requests_running") < 32:
            time.sleep(0.1)
        told = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        answers = [answer.result() for answer in waiting]
    assert [answer.json()["usage"]["completion_tokens"] for answer in answers] == [200] * 32
    assert server.process.wait(DRAIN_SECONDS) == 0
    assert time.monotonic() - told < DRAIN_SECONDS

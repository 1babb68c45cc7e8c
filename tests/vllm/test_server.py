"""`kad serve tiny`, asked with the openai client, speculating as it does by default."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fuzz
import openai
import psutil
import pytest
import torch
from forks import engine_environment
from server import Server

import hostile
from kad import KadForCausalLM

EXAMPLES = Path(__file__).parents[2] / "examples"
QUESTION = "Mia has 24 apples. She buys 13 more. How many apples does she have now?"
# Few blocks, so that a round of requests touches all of the cache's memory; no white space, which a small model may
# produce between braces until its tokens run out.
OPTIONS = (
    *("--enforce-eager", "--dtype", "float32", "--seed", "0"),
    *("--max-model-len", "256", "--max-num-seqs", "64", "--num-gpu-blocks-override", "64"),
    *("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}'),
)
RULES = [None, "aligned_only", "base_only", "dual:threshold=0.1", "primal:budget=0.5", "implicit_reward"]
ENVIRONMENT = {key: value for key, value in engine_environment().items() if "MULTIPROCESSING" not in key} | {
    "MALLOC_ARENA_MAX": "1",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8",
}


@pytest.fixture(scope="module")
def own_rule(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of examples/own_rule, installed by pip into a folder of its own."""
    folder = tmp_path_factory.mktemp("own-rule")
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    subprocess.run([sys.executable, *pip, "--target", folder, EXAMPLES / "own_rule"], check=True)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, own_rule: Path) -> Iterator[Server]:
    path = os.pathsep.join(filter(None, [str(own_rule), os.environ.get("PYTHONPATH")]))
    environment = ENVIRONMENT | {"PYTHONPATH": path}
    with Server("tiny", tmp_path_factory.mktemp("server") / "log.txt", environment, *OPTIONS) as running:
        yield running


def chat(server: Server, question: str = QUESTION, **options: Any) -> Any:
    settings = {"model": "tiny", "max_tokens": 48, "temperature": 0.0} | options
    return server.client().chat.completions.create(messages=[{"role": "user", "content": question}], **settings)


def complete(server: Server, prompt: str, rule: str | None, **options: Any) -> str:
    extra = {"vllm_xargs": {"rule": rule}} if rule else {}
    settings = {"model": "tiny", "max_tokens": 16, "temperature": 0.0} | options
    answer = server.client().completions.create(prompt=prompt, extra_body=extra, **settings)
    return answer.choices[0].text


@pytest.fixture(scope="module")
def greedy(tiny: str) -> str:
    """What Transformers answers."""
    from transformers import AutoTokenizer

    model, tokenizer = KadForCausalLM.from_pretrained(tiny, dtype=torch.float32), AutoTokenizer.from_pretrained(tiny)
    messages = [{"role": "user", "content": QUESTION}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**inputs, max_new_tokens=48, do_sample=False)
    text: str = tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text


def test_the_first_request_may_have_top_k_alone(server: Server, greedy: str) -> None:
    """First of all: a step without a drafted row once ended the engine."""
    assert chat(server, temperature=1.0, extra_body={"top_k": 1}).choices[0].message.content == greedy


def test_chat_is_what_transformers_answers(server: Server, greedy: str) -> None:
    answer = chat(server).choices[0]
    assert answer.message.content == greedy
    assert answer.finish_reason == "stop"
    assert server.metric("vllm:spec_decode_num_accepted_tokens_total") > 0


@pytest.mark.supports("vLLM", "streaming", rules=())
def test_streaming_gives_the_same_in_pieces(server: Server, greedy: str) -> None:
    pieces = [chunk.choices[0].delta.content or "" for chunk in chat(server, stream=True) if chunk.choices]
    assert "".join(pieces) == greedy
    assert len([piece for piece in pieces if piece]) > 1


@pytest.mark.supports("vLLM", "several choices", rules=())
def test_several_choices_with_log_probabilities(server: Server) -> None:
    # Hot, since the trained pair nearly always gives one and the same answer at temperature 1.
    answer = chat(server, n=3, temperature=2.0, seed=1, logprobs=True, top_logprobs=3)
    assert len({choice.message.content for choice in answer.choices}) > 1
    for choice in answer.choices:
        for entry in choice.logprobs.content:
            assert len(entry.top_logprobs) >= 3
            assert entry.logprob <= 1e-6


@pytest.mark.supports("vLLM", "stop strings", rules=())
def test_a_stop_string_ends_the_text(server: Server, greedy: str) -> None:
    answer = chat(server, stop=["="]).choices[0]
    assert answer.message.content == greedy.split("=")[0]


@pytest.mark.supports("vLLM", "JSON schemas", rules=())
def test_a_schema_is_kept_to(server: Server) -> None:
    schema = {"type": "object", "properties": {"fruit": {"enum": ["apple", "pear"]}}, "required": ["fruit"]}
    choice = {
        "type": "json_schema",
        "json_schema": {"name": "fruit", "schema": schema | {"additionalProperties": False}},
    }
    answer = chat(server, response_format=choice, max_tokens=100).choices[0].message.content
    assert json.loads(answer)["fruit"] in ("apple", "pear")


@pytest.mark.parametrize("rule", ["contrastive:plausibility=1", "contrastive:weight=3,plausibility=0.9", *RULES])
def test_masks_leave_possible_tokens(server: Server, rule: str | None) -> None:
    """A mask that leaves only tokens which a rule thinks nothing of: one of them comes, and no other."""
    extra = {"vllm_xargs": {"rule": rule}} if rule else {}
    asked = {"temperature": 1.0, "seed": 5, "max_tokens": 6}
    few = {"allowed_token_ids": [200, 201, 202], "return_tokens_as_token_ids": True, **extra}
    tokens = {entry.token for entry in chat(server, **asked, logprobs=True, extra_body=few).choices[0].logprobs.content}
    assert tokens <= {"token_id:200", "token_id:201", "token_id:202"}
    choices = {"structured_outputs": {"choice": ["zebra", "quilt"]}, **extra}
    chosen = chat(server, **asked | {"max_tokens": 20}, extra_body=choices).choices[0].message.content
    assert chosen in ("zebra", "quilt")
    least = chat(server, **asked | {"max_tokens": 40}, extra_body={"min_tokens": 30, **extra})
    assert least.usage.completion_tokens >= 30


@pytest.mark.parametrize("rule", ["dual:threshold=7", "duel", "dual:lambda=0.4", "dual:threshold=x"])
def test_a_bad_rule_is_the_clients_mistake(server: Server, rule: str) -> None:
    with pytest.raises(openai.BadRequestError, match="rule|threshold") as refused:
        chat(server, extra_body={"vllm_xargs": {"rule": rule}})
    assert refused.value.status_code == 400
    assert server.healthy()


def test_a_rule_of_another_package_composes_in_the_engines_process(server: Server) -> None:
    ends = {bound: complete(server, QUESTION, f"entropic:bound={bound}") for bound in (0, 1000)}
    assert ends[0] == complete(server, QUESTION, "aligned_only")
    assert ends[1000] == complete(server, QUESTION, "base_only")
    assert ends[0] != ends[1000]


def test_the_example_of_the_client_gets_its_answers(server: Server) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "openai_client.py"],
        env=os.environ | {"OPENAI_BASE_URL": f"http://localhost:{server.port}/v1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    composed, _, base_alone = done.stdout.partition("base_only: ")
    assert composed.startswith("the rule of the pair: First, 24 + 13 = 37.")
    assert "The answer is \\boxed{28}." in composed
    assert "boxed{28}" not in base_alone


def test_a_mistyped_key_is_the_clients_mistake(server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="unknown key 'rulee'"):
        chat(server, extra_body={"vllm_xargs": {"rulee": "dual:threshold=0.6"}})


def test_a_megabyte_of_rule_is_the_clients_mistake(server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="at most 256 are allowed") as refused:
        chat(server, extra_body={"vllm_xargs": {"rule": "dual:" + "a" * 1_000_000}})
    assert len(str(refused.value)) < 1000


def test_an_over_long_prompt_is_the_clients_mistake(server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="256"):
        chat(server, question=QUESTION * 20)


def deferred(server: Server, rule: str) -> tuple[float, float]:
    """What /metrics has counted for a rule: deferred mass, and rows."""
    return server.metric("kad:deferred_mass_total", rule), server.metric("kad:composed_rows_total", rule)


def test_metrics_have_the_deferred_mass_of_each_rule(server: Server) -> None:
    rules = ("aligned_only", "base_only", "dual:threshold=0.45")
    assert deferred(server, rules[-1]) == (0, 0)
    for rule in rules:
        complete(server, QUESTION, rule)
    everything, nothing, some = (deferred(server, rule) for rule in rules)
    assert everything[0] == pytest.approx(everything[1])
    assert (nothing[0], nothing[1] > 0) == (0, True)
    assert 0 < some[0] < some[1]


def test_a_client_that_hangs_up_frees_its_place_and_its_rows_stay_counted(server: Server) -> None:
    rule = "dual:threshold=0.46"
    stream = chat(server, max_tokens=200, stream=True, extra_body={"ignore_eos": True, "vllm_xargs": {"rule": rule}})
    for _ in range(5):
        next(stream)
    stream.close()
    deadline = time.monotonic() + 20
    while server.metric("vllm:num_requests_running") > 0:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    counted = deferred(server, rule)
    assert counted[1] >= 5
    assert chat(server, extra_body={"vllm_xargs": {"rule": rule}}).choices[0].finish_reason == "stop"
    mass, rows = deferred(server, rule)
    assert rows - counted[1] >= 16
    assert mass > counted[0] > 0


def test_hostile_requests_are_refused_and_the_server_goes_on(server: Server) -> None:
    assert hostile.wrong(server.address, "tiny", hostile.OF_VLLM) == []


def test_random_requests_good_and_bad(server: Server) -> None:
    """A small part of what `python tests/vllm/fuzz.py` sends."""
    report = fuzz.run(server.address, "tiny", requests=150, clients=32, seed=0)
    assert report.wrong == []
    assert report.fates["bad: 400"] > 10
    assert report.fates["good: 200"] > 60


@pytest.mark.supports("vLLM", "server", rules=RULES)
def test_two_hundred_at_once_are_answered_as_one_by_one(server: Server) -> None:
    asked = [(" ".join([QUESTION] * (1 + i % 4))[i % 9 :], RULES[i % len(RULES)]) for i in range(200)]
    one_by_one = {request: complete(server, *request) for request in dict.fromkeys(asked)}
    memory = [server.memory()]
    for _ in range(10):
        with ThreadPoolExecutor(200) as clients:
            texts = list(clients.map(lambda request: complete(server, *request), asked))
        assert texts == [one_by_one[request] for request in asked]
        memory.append(server.memory())
        # vLLM's CPU engine grows by 30 to 40 MB in each of the first rounds with any model (measured: the base alone).
        # What is kept per request would show in every round.
        if memory[-1] - memory[-2] < len(asked) * 100_000:
            break
    else:
        pytest.fail(f"Memory grows with every round: {[size >> 20 for size in memory]} MiB")
    assert len(set(one_by_one.values())) > 3


def test_a_dead_engine_is_reported_and_a_new_server_with_a_key_serves(
    server: Server, greedy: str, tmp_path: Path
) -> None:
    """Last, for it ends the server of this module."""
    server.engine().kill()
    with pytest.raises((openai.APIConnectionError, openai.InternalServerError)):
        chat(server)
    server.process.wait(60)
    assert "EngineDeadError" in server.log.read_text()
    keyed = ENVIRONMENT | {"KAD_API_KEY": "own"}
    with Server("tiny", tmp_path / "log.txt", keyed, *OPTIONS, "--no-speculate") as again:
        with pytest.raises(openai.AuthenticationError):
            chat(again)
        asked = {"model": "tiny", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0.0}
        with_key = again.client().with_options(api_key="own").chat.completions
        assert with_key.create(**asked, max_tokens=48).choices[0].message.content == greedy  # type: ignore[call-overload]
        commands = [" ".join(process.cmdline()) for process in again.family()]
        assert not any(" own" in command for command in commands)
        # And the other way round: a killed API server leaves nothing behind.
        everything = again.family()
        assert len(everything) > 1
        again.process.kill()
        _, left = psutil.wait_procs(everything, timeout=30)
        assert not left

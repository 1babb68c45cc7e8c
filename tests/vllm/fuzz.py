"""Random requests, good and bad, to a running server: each good one is answered, each bad one refused, nothing else.

    kad serve tiny --port 8000 --max-model-len 256 ...
    python tests/vllm/fuzz.py http://127.0.0.1:8000 --model tiny --requests 1000 --clients 64 --seed 0

The requests of tests/hostile.py come first. Then rules, sampling options, grammars, streams and hang-ups are mixed at
random. At the end the greedy texts are asked for again, one by one: they must be what they were in the crowd. With
--rounds all this is repeated, with the next seeds; --server NUMBER, the server's process, shows its memory after each
round.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from server import memory

from kad.rules import registry

sys.path.append(str(Path(__file__).parents[1]))
import hostile

QUESTIONS = [
    "Mia has 24 apples. She buys 13 more. How many apples does she have now?",
    "Tom has 50 pens. He loses 8. How many are left?",
    "Anna",
    "17 + 25 * 3 = ? " * 6,
]
SCHEMA = {"type": "object", "properties": {"fruit": {"enum": ["apple", "pear"]}}, "required": ["fruit"]}
# Of each option at most one value goes into a request; speculation refuses two of them (min_p and logit_bias).
OPTIONS: dict[str, list[Any]] = {
    "temperature": [0.0, 0.0, 0.0, 0.7, 1.0, 2.0],
    "top_k": [-1, 1, 2, 50, 100_000],
    "top_p": [0.01, 0.5, 0.95, 1.0],
    "min_p": [0.0, 0.1],
    "seed": [0, 7, 2**31],
    "n": [1, 2, 3],
    "max_tokens": [1, 2, 8, 24],
    "min_tokens": [0, 1],
    "presence_penalty": [-2.0, 0.5],
    "frequency_penalty": [2.0],
    "repetition_penalty": [0.8, 1.3],
    "logit_bias": [{"5": 3.0, "9": -100.0}],
    "stop": ["=", ["is", "."]],
    "stop_token_ids": [[5, 6]],
    "bad_words": [["apples"]],
    "ignore_eos": [True],
    "allowed_token_ids": [[5, 6, 7, 200]],
    "stream": [True, False],
    "structured_outputs": [
        {"regex": r"[ab]{1,9}"},
        {"choice": ["yes", "no"]},
        {"json": SCHEMA | {"additionalProperties": False}},
        {"grammar": 'root ::= "a" | "b" root'},
    ],
}
BAD: list[dict[str, Any]] = [
    {"temperature": -1},
    {"top_p": 3},
    {"top_k": -7},
    {"max_tokens": 100_000},
    {"n": -1},
    {"presence_penalty": 9},
    {"allowed_token_ids": [10**9]},
    {"structured_outputs": {"regex": "(("}},
    {"vllm_xargs": {"rule": "duel"}},
    {"vllm_xargs": {"rule": "dual:threshold=7"}},
    {"vllm_xargs": {"rule": "dual:" + "a" * 100_000}},
    {"vllm_xargs": {"rule": ["dual", "primal"]}},
    {"vllm_xargs": {"rulee": "dual"}},
    {"vllm_xargs": {"rule": "product:base=1e38,aligned=1"}},
    {"temperature": "hot"},
]


@dataclass
class Report:
    """What became of the requests: how many of each fate, and those that met one they should not have."""

    fates: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def rules() -> list[str]:
    """Every rule with its defaults, and some with parameters at their ends."""
    ends = ["dual:threshold=0", "dual:threshold=1", "primal:budget=0", "primal:budget=1", "contrastive:plausibility=1"]
    return [*registry(), *ends, "contrastive:weight=3,plausibility=0.9", "product:base=0,aligned=1"]


def request(chance: random.Random, reference: bool) -> tuple[dict[str, Any], bool]:
    """A random request, and whether it is a bad one."""
    body: dict[str, Any] = {"max_tokens": 8, "messages": [{"role": "user", "content": chance.choice(QUESTIONS)}]}
    for name, values in OPTIONS.items():
        if chance.random() < 0.25:
            body[name] = chance.choice(values)
    if "structured_outputs" in body:  # A grammar and a list of tokens leave nothing in common; after its end all goes.
        for name in ("allowed_token_ids", "min_tokens", "bad_words", "stop_token_ids", "ignore_eos"):
            body.pop(name, None)
    body["min_tokens"] = min(body.get("min_tokens", 0), body["max_tokens"])
    if body.get("temperature") == 0.0 or body.get("stream"):  # A stream mixes the pieces of several choices.
        body["n"] = 1
    if chance.random() < 0.8:
        known = [rule for rule in rules() if reference or not registry()[rule.partition(":")[0]].needs_reference]
        body["vllm_xargs"] = {"rule": chance.choice(known)}
    bad = chance.random() < 0.15
    return (body | chance.choice(BAD) if bad else body), bad


def ask(client: httpx.Client, body: dict[str, Any], hang_up: bool) -> tuple[int, str]:
    """The status and the text, or what a stream gave until it ended or we hung up."""
    if not body.get("stream"):
        answer = client.post("/v1/chat/completions", json=body)
        if answer.status_code != 200:
            return answer.status_code, answer.text
        return 200, "\0".join(str(choice["message"]["content"]) for choice in answer.json()["choices"])
    pieces: list[str] = []
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        for line in answer.iter_lines():
            if answer.status_code != 200:
                pieces.append(line)
                continue
            if hang_up and pieces:
                return 200, "hung up"
            if line.startswith('data: {"error"'):  # A stream has begun with status 200 when it is refused.
                return int(json.loads(line[6:])["error"]["code"]), line
            if line.startswith("data: {"):
                pieces += [choice["delta"].get("content") or "" for choice in json.loads(line[6:])["choices"]]
        return answer.status_code, "".join(pieces)


def keeps_to(body: dict[str, Any], text: str) -> bool:
    """Whether a whole answer keeps to its grammar; one that ran out of tokens shows only a beginning."""
    wanted = body.get("structured_outputs", {})
    if "choice" in wanted:
        return any(choice.startswith(text) for choice in wanted["choice"])
    return re.fullmatch(wanted.get("regex", ".*"), text, re.DOTALL) is not None or not text


def run(
    address: str,
    model: str,
    *,
    requests: int,
    clients: int,
    seed: int,
    reference: bool = True,
    hang_ups: float = 0.1,
    progress: Callable[[str], None] = lambda text: None,
) -> Report:
    """Send the requests of a seed and compare what came back with what had to.

    Args:
        address: the server, as "http://127.0.0.1:8000".
        model: the name it serves.
        requests: how many.
        clients: how many at once.
        seed: of all random choices.
        reference: whether the pair has a reference model.
        hang_ups: the share of streams whose client goes away after the first pieces.
        progress: told a line now and then.
    """
    chance = random.Random(seed)
    asked = [(*request(chance, reference), chance.random() < hang_ups) for _ in range(requests)]
    report, greedy = Report(), []
    with httpx.Client(base_url=address, timeout=300, limits=httpx.Limits(max_connections=clients)) as client:

        def one(job: tuple[dict[str, Any], bool, bool]) -> tuple[int, str]:
            return ask(client, {"model": model, **job[0]}, job[2])

        with ThreadPoolExecutor(clients) as crowd:
            for done, (job, (status, text)) in enumerate(zip(asked, crowd.map(one, asked), strict=True)):
                body, bad, _ = job
                refusable = bad or body.get("min_p") or body.get("logit_bias")
                report.fates[f"{'bad' if bad else 'good'}: {'hung up' if text == 'hung up' else status}"] += 1
                if status >= 500 or ((status >= 400) != bad and not (refusable and status == 400)):
                    report.wrong.append(f"{status} {text[:300]} for {str(body)[:600]}")
                elif len(text) > 5_000:
                    report.wrong.append(f"{len(text):,} characters of answer for {str(body)[:600]}")
                elif status == 200 and text != "hung up":
                    # A refusal says so with a status; any text must keep to its grammar.
                    if not all(keeps_to(body, single) for single in text.split("\0")):
                        report.wrong.append(f"{text!r} does not keep to the grammar of {body}")
                    if body.get("temperature") == 0.0:
                        greedy.append((job, text))
                if done % 100 == 99:
                    progress(f"{done + 1} of {requests}: {dict(report.fates)}, {len(report.wrong)} wrong")
        for job, text in greedy:
            again = one((job[0], False, False))
            report.fates["greedy: the same alone" if again == (200, text) else "greedy: another text alone"] += 1
            if again != (200, text):
                report.wrong.append(f"{text!r} in the crowd, {again} alone, for {job[0]}")
        if client.get("/health").status_code != 200:
            report.wrong.append("the server is not healthy any more")
    return report


def main() -> None:
    """The command line; exit code 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--server", type=int, help="the process whose memory is shown, with that of its children")
    parser.add_argument("--hang-ups", type=float, default=0.1, help="the share of streams that a client cuts off")
    parser.add_argument("--no-reference", action="store_true", help="the pair has no reference model")
    chosen = parser.parse_args()
    whole = Report(wrong=hostile.wrong(chosen.address, chosen.model, hostile.OF_VLLM))
    for number in range(chosen.rounds):
        report = run(
            chosen.address,
            chosen.model,
            requests=chosen.requests,
            clients=chosen.clients,
            seed=chosen.seed + number,
            reference=not chosen.no_reference,
            hang_ups=chosen.hang_ups,
            progress=lambda text: print(text, flush=True),
        )
        whole.fates += report.fates
        whole.wrong += report.wrong
        if chosen.server is not None:
            print(f"after round {number + 1}: {memory(chosen.server) >> 20:,} MiB", flush=True)
    print(json.dumps({"fates": dict(whole.fates), "wrong": whole.wrong}, indent=1))
    sys.exit(bool(whole.wrong))


if __name__ == "__main__":
    main()

"""What it costs to read a base model through the aligned model's tokens, and what the search leaves out.

    python -m benchmarks.translation [--base MODEL --aligned MODEL] [--questions FILE] [--positions 200]

Without models it takes the real pair (extra `real-pair`), as GGUF files where llama.cpp is installed. For each question
it decodes greedily, and counts forward passes of the base model and seconds for each token, beside the bare steps of
the two models. Then it decodes again with drafts, and reads positions again with a much finer search, to compare the
tokens that `dual` keeps. Results: `results/translation.json`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

import kad
from benchmarks.harness import save
from kad import hosts
from kad.engines.pair import pair_of
from kad.engines.scorers import LEAST, LEAST_BRANCH, Translated
from kad.text.contexts import Asking
from kad.text.streaming import Stream
from kad.tiny import real_pair
from kad.tokens import Nodes, Reading, Translation
from kad.tokens.token_bytes import token_bytes

QUESTIONS = [
    f"What is the capital of {country}?"
    for country in (
        "Australia", "Canada", "Chile", "Egypt", "Finland", "Ghana", "Iceland", "Kenya", "Norway", "Peru", "Austria",
        "Bolivia", "Cuba", "Ethiopia", "France", "Greece", "Hungary", "Iraq", "Japan", "Laos", "Malta", "Nepal", "Oman",
        "Poland",
    )
]  # fmt: skip
THRESHOLD = 0.4
LONG = replace(real_pair.WITH_EXAMPLES, ends="aligned")
"""q* ends the answers, so they are long."""
DRAFTS = (0, 2, 4)


def clocks() -> tuple[float, float]:
    """The time, and the processor's time: the second does not count what other programs do in between."""
    return time.perf_counter(), time.process_time()


def since(before: tuple[float, float]) -> tuple[float, float]:
    """The seconds of both clocks since `before`."""
    now = clocks()
    return now[0] - before[0], now[1] - before[1]


def medians(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """The median of each clock."""
    time_, processor = zip(*pairs, strict=True)
    return median(time_), median(processor)


def step_seconds(model: Any, role: str, length: int = 40, steps: int = 12) -> tuple[float, float]:
    """The median of one model's step behind `length` tokens, by both clocks."""
    scorer = pair_of(model).scorers([role])[role]
    ids = torch.arange(5, 5 + length)
    scorer.advance(ids, 1)
    times = []
    for _ in range(steps):
        started = clocks()
        scorer.advance(ids[:1], 1)
        times.append(since(started))
    return medians(times)


def answers(model: Any, questions: list[str], new_tokens: int) -> list[dict[str, Any]]:
    """Greedy answers, with the forwards of the base model and the seconds of each token after the first.

    And with the seconds of the bare steps of both models just before, because the machine's speed changes. All seconds
    by both clocks.
    """
    found = []
    how = kad.Sampling(temperature=0, max_new_tokens=new_tokens)
    for question in questions:
        steps = (step_seconds(model, role) for role in ("base", "aligned"))
        step = [sum(clock) for clock in zip(*steps, strict=True)]
        stream = Stream(model, Asking(question).context(pair_of(model)), model.composition, how, 0)
        base = stream.loop.scorers["base"]
        assert isinstance(base, Translated)
        seconds, forwards, before, started = [], [], 0, None
        for piece in stream:
            if started is not None:
                seconds.append(since(started))
                forwards.append(base.forwards - before)
            before, started = base.forwards, clocks()
            assert piece.deferred_mass is not None
        text = stream.answer.text
        found.append({"question": question, "answer": text, "seconds": seconds, "forwards": forwards, "step": step,
                      "tokens": stream.answer.token_ids})  # fmt: skip
        print(f"{question} {text!r} {sum(forwards)} forwards for {len(forwards)} tokens", flush=True)
    return found


def with_drafts(model: Any, questions: list[str], new_tokens: int) -> dict[str, float]:
    """Seconds for each token of whole answers, by the number of drafts. The order alternates."""
    how = kad.Sampling(temperature=0, max_new_tokens=new_tokens)
    seconds, tokens = dict.fromkeys(DRAFTS, 0.0), dict.fromkeys(DRAFTS, 0)
    for place, question in enumerate(questions):
        for drafts in DRAFTS if place % 2 == 0 else reversed(DRAFTS):
            answer = kad.generate(model, question, sampling=how, num_draft_tokens=drafts, origins=False)
            seconds[drafts] += answer.seconds
            tokens[drafts] += len(answer.token_ids)
    return {f"seconds_per_token_with_{drafts}_drafts": seconds[drafts] / tokens[drafts] for drafts in DRAFTS}


def compare(model: Any, given: list[dict[str, Any]], positions: int) -> dict[str, Any]:
    """The kept sets of the search beside those of a finer one, at the first `positions` positions."""
    base, aligned = token_bytes(pair_of(model).base_tokenizer), token_bytes(model.tokenizer)
    differ, rests, gaps, count = 0, [], [], 0
    for item in given:
        context = Asking(item["question"]).context(pair_of(model))
        rows = []
        for least, branch, most in ((LEAST, LEAST_BRANCH, 32), (LEAST / 10, 0.01, 200)):
            scorer = pair_of(model).scorers(["base"])["base"]
            last = scorer.advance(torch.tensor(context.base_ids), 1)[0]
            nodes = Nodes(scorer, last, base, least)
            stops = [stop.encode() for stop in context.stops]
            search = Translation(
                nodes, aligned, opened=context.opened.encode(), stops=stops, least_branch=branch, most_branches=most
            )
            ends = range(min(len(item["tokens"]), positions - count))
            rows.append([search.read(item["tokens"][:end]) for end in ends])
        for coarse, fine in zip(*rows, strict=True):
            differ += _kept(coarse) != _kept(fine)
            rests.append(coarse.rest)
            gaps.append(max((abs(p - coarse.p.get(token, 0.0)) for token, p in fine.p.items()), default=0.0))
        count += len(rows[0])
        if count >= positions:
            break
    return {
        "positions": count, "kept_sets_that_differ": differ, "mass_of_nobody_mean": sum(rests) / count,
        "mass_of_nobody_max": max(rests), "largest_gap_mean": sum(gaps) / count, "largest_gap_max": max(gaps),
    }  # fmt: skip


def _kept(reading: Reading) -> set[int]:
    return {token for token, p in reading.p.items() if p >= THRESHOLD}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base")
    parser.add_argument("--aligned")
    parser.add_argument("--questions", type=Path, help="one question a line")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--positions", type=int, default=200)
    options = parser.parse_args()
    named: dict[str, Any] = {"base": options.base, "aligned": options.aligned}
    if options.base is None:
        found = real_pair.files() if hosts.is_installed("llama_cpp") else real_pair.folders()
        named = {**{role: str(path) for role, path in found.items()}, "base_prompt": LONG}
    model: Any = kad.load(**named, rule=f"dual:threshold={THRESHOLD}")
    questions = options.questions.read_text(encoding="utf-8").splitlines() if options.questions else QUESTIONS
    with torch.no_grad():
        given = answers(model, questions, options.new_tokens)
        drafted = with_drafts(model, questions[:12], options.new_tokens)
        search = compare(model, given, options.positions)
    forwards = [count for item in given for count in item["forwards"]]
    seconds = [second for item in given for second in item["seconds"]]
    costs = [
        [s / step for s, step in zip(pair, item["step"], strict=True)] for item in given for pair in item["seconds"]
    ]
    cost, processor_cost = medians(costs)
    result = {
        "tokens": len(forwards), "forwards_per_token_mean": sum(forwards) / len(forwards),
        "forwards_per_token_median": median(forwards), "seconds_per_token_median": medians(seconds)[0],
        "bare_steps_seconds": medians([item["step"] for item in given])[0], "cost_median": cost,
        "cost_median_processor": processor_cost, **drafted, **search,
    }  # fmt: skip
    save("translation", result)
    print(result)


if __name__ == "__main__":
    main()

"""Answers of `kad.load(engine="vllm")`, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kad
from kad.errors import UsageError
from kad.text.batch import generate_all
from kad.text.prompts import encode

OPTIONS = {"enforce_eager": True, "max_model_len": 512, "max_num_seqs": 16}
QUESTIONS = [problem.question for problem in kad.tiny.problems("development", 3)]
RULES = ("dual:threshold=0.4", "implicit_reward")
GREEDY = kad.Sampling(temperature=0, max_new_tokens=40)
HOT = kad.Sampling(temperature=2.0, top_k=0, max_new_tokens=40)
PROMPTS, MAX_LENGTH = (4, 20), 30
STOP = kad.Sampling(temperature=0, max_new_tokens=40, stop=("answer",))


def answers() -> dict[str, Any]:
    model = kad.load("tiny", engine="vllm", dtype="float32", engine_options=OPTIONS)
    prompts = [encode(model.tokenizer, question) for question in QUESTIONS]
    found: dict[str, Any] = {"context": model.context_length}
    for rule in RULES:
        found[rule] = [plain(kad.generate(model, question, sampling=GREEDY, rule=rule)) for question in QUESTIONS]
    found["together"] = [plain(answer) for answer in generate_all(model, model.tokenizer, prompts, sampling=GREEDY)]
    hot = generate_all(model, model.tokenizer, [prompts[0]] * 4, sampling=HOT, seeds=[5, 6, 7, 5])
    found["sampled"] = [plain(answer) for answer in hot]
    found["stop string"] = plain(kad.generate(model, QUESTIONS[0], sampling=STOP))

    # Two streams in turns: the pieces of one do not end up in the other. Then one is stopped.
    first, second = (kad.stream(model, question, sampling=GREEDY) for question in QUESTIONS[:2])
    for _ in range(5):
        next(first), next(second)
    second.stop()
    found["in turns"] = [plain(first.finish()), plain(second.finish())]
    found["after a stop"] = plain(kad.generate(model, QUESTIONS[2], sampling=GREEDY))

    drafted = kad.generate(model, QUESTIONS[0], sampling=GREEDY, num_draft_tokens=3)
    found["drafted"] = plain(drafted) | {"statistics": drafted.statistics and drafted.statistics.to_dict()}
    again = kad.generate(model, QUESTIONS[1], sampling=GREEDY)
    found["drafts stay"] = plain(again) | {"drafts": again.drafting.draft_tokens}
    found["refusals"] = refusals(model)
    model.generation_config.max_length = MAX_LENGTH
    ends = generate_all(
        model, model.tokenizer, [[5] * count for count in PROMPTS], sampling=kad.Sampling(temperature=0)
    )
    found["max_length"] = [(len(answer.prompt_ids) + len(answer.token_ids), answer.finish_reason) for answer in ends]
    model.generation_config.update(max_length=None, encoder_repetition_penalty=1.5)
    asks = {
        "setting": lambda: kad.generate(model, "x"),
        "setting of many": lambda: generate_all(model, model.tokenizer, prompts),
    }
    found["refusals"] |= said_by(asks)
    model.generation_config.update(encoder_repetition_penalty=None, do_sample=True, temperature=0.005)
    found["refusals"] |= said_by({"cold": asks["setting"]})  # vLLM would draw with 0.01
    return found


def plain(answer: kad.Answer) -> dict[str, Any]:
    pieces = "".join(piece.text for piece in answer.pieces)
    return {"ids": answer.token_ids, "text": answer.text, "pieces": pieces, "reason": answer.finish_reason}


def refusals(model: Any) -> dict[str, str]:
    asks: dict[str, Callable[[], object]] = {
        "auto": lambda: kad.generate(model, "x", num_draft_tokens="auto"),
        "temperature": lambda: kad.generate(model, "x", deferral_temperature=2.0),
        "score": lambda: kad.score(model, "x", "y"),
        "device": lambda: kad.load("tiny", engine="vllm", device="cpu"),
        "min_p": lambda: kad.generate(
            model, "x", sampling=kad.Sampling(temperature=1.0, min_p=0.5), num_draft_tokens=3
        ),
    }
    return said_by(asks)


def said_by(asks: dict[str, Callable[[], object]]) -> dict[str, str]:
    said = {}
    for name, ask in asks.items():
        try:
            ask()
        except UsageError as error:
            said[name] = str(error)
    return said

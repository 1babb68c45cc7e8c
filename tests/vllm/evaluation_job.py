"""Completions of the evaluation's vLLM engine, in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from kad import tiny
from kad.errors import UsageError
from kad.evaluation.engine import Engine, SampleRequest
from kad.evaluation.methods import parse_method
from kad.pair.parts import read_config
from kad.pair.sources import Source

ARGUMENTS = {"enforce_eager": True, "max_model_len": 512, "max_num_seqs": 16}
QUESTIONS = 3
# One question, hot enough that seeds differ; the last request is the first one again.
SEEDS, TEMPERATURE = (5, 6, 7, 5), 2.0


def completions(names: Sequence[str]) -> dict[str, Any]:
    methods = [parse_method(name) for name in names]
    references = read_config("tiny").model_sources()
    references |= {m.name: Source.parse(m.model) for m in methods if m.model is not None}
    engine = Engine(references, options={"dtype": "float32"}, engine="vllm", engine_options=ARGUMENTS)
    found: dict[str, Any] = {}
    for method in methods:
        render = engine.renderer(method)
        prompts = [render(problem.messages()) for problem in tiny.problems("development", QUESTIONS)]
        batches = {
            "greedy": [SampleRequest(prompt, 0, 60, 0.0) for prompt in prompts],
            "sampled": [SampleRequest(prompts[0], seed, 60, TEMPERATURE) for seed in SEEDS],
        }
        for way, requests in batches.items():
            found[f"{method.name} {way}"] = [asdict(drawn) for drawn in engine.generate(method, requests)]
    try:
        engine.generate(parse_method("dual@speculative:num_draft_tokens=auto"), [SampleRequest("x", 0, 4, 0.0)])
    except UsageError as error:
        found["refusal"] = str(error)
    engine.release(())
    return found

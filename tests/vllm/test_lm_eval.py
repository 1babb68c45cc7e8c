"""lm-eval's own model `vllm` on a pair folder, nothing of kad's in between: texts and log-likelihoods are pi's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any, NamedTuple

import pytest
import torch
from forks import engine_environment
from transformers import AutoTokenizer

from kad import KadForCausalLM
from kad.tiny import problems
from kad.tiny.problems import SYSTEM_PROMPT

# Sums over tens of tokens, each within the tolerance of test_distribution.
TOLERANCE = 5e-3
COMMON = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
description: "{system}"
doc_to_text: "{{{{question}}}}"
"""
TASKS = {
    "problem_answer": """
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], do_sample: false, max_gen_toks: 80}
metric_list: [{metric: exact_match}]
""",
    "problem_choice": """
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{metric: acc}]
""",
}


class Asked(NamedTuple):
    """A question as the chat template writes it, and what Transformers answers greedily."""

    prompt: str
    answer: str


@pytest.fixture(scope="module")
def asked(tiny: str) -> dict[str, Asked]:
    model, tokenizer = KadForCausalLM.from_pretrained(tiny, dtype=torch.float32), AutoTokenizer.from_pretrained(tiny)
    found = {}
    for problem in problems("development", 4):
        prompt = tokenizer.apply_chat_template(problem.messages(), add_generation_prompt=True, tokenize=False)
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        tokens = model.generate(**inputs, max_new_tokens=80, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        found[problem.question] = Asked(prompt, tokenizer.decode(tokens, skip_special_tokens=True))
    return found


@pytest.fixture(scope="module")
def samples(
    tiny: str, asked: dict[str, Asked], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    """What lm-eval logs of each task, run by its command in a process of its own."""
    folder = tmp_path_factory.mktemp("lm-eval")
    rows = folder / "rows.jsonl"
    lines = [{"question": q, "answer": a.answer, "choices": [a.answer, "Nothing"]} for q, a in asked.items()]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for task, text in TASKS.items():
        (folder / f"{task}.yaml").write_text(f"task: {task}" + COMMON.format(rows=rows, system=SYSTEM_PROMPT) + text)
    arguments = f"pretrained={tiny},dtype=float32,enforce_eager=True,max_model_len=512"
    command = ["-m", "kad.engines.vllm.launch", "lm_eval", "run", "--model", "vllm", "--model_args", arguments]
    command += ["--include_path", folder, "--tasks", ",".join(TASKS), "--apply_chat_template", "--batch_size", "auto"]
    done = subprocess.run(
        [sys.executable, *map(str, command), "--output_path", str(folder / "out"), "--log_samples"],
        env=os.environ | engine_environment() | {"HF_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    files = {task: next((folder / "out").rglob(f"samples_{task}_*.jsonl")) for task in TASKS}
    return {task: [json.loads(line) for line in file.read_text().splitlines()] for task, file in files.items()}


@pytest.mark.supports("vLLM", "lm-eval's own model `vllm`", rules=())
def test_generated_texts_are_those_of_transformers(samples: Any, asked: dict[str, Asked]) -> None:
    assert len(samples["problem_answer"]) == len(asked)
    for sample in samples["problem_answer"]:
        prompt, answer = asked[sample["doc"]["question"]]
        assert sample["arguments"]["gen_args_0"]["arg_0"] == prompt
        assert sample["resps"] == [[answer.partition("\n\n")[0]]]


def test_log_likelihoods_are_those_of_transformers(
    samples: Any, asked: dict[str, Asked], tiny: str, log_pi: Any
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    likeliest = []
    for sample in samples["problem_choice"]:
        prompt = tokenizer(asked[sample["doc"]["question"]].prompt, add_special_tokens=False)["input_ids"]
        for text, ((found, greedy),) in zip(sample["doc"]["choices"], sample["resps"], strict=True):
            choice = tokenizer(text, add_special_tokens=False)["input_ids"]
            rows = log_pi(tiny, None, prompt + choice)[len(prompt) - 1 : -1]
            expected = rows.gather(-1, torch.tensor(choice).unsqueeze(-1)).sum().item()
            assert abs(expected - float(found)) < TOLERANCE
            assert (greedy == "True") == (rows.argmax(-1).tolist() == choice)
            likeliest.append(greedy)
    assert set(likeliest) == {"True", "False"}

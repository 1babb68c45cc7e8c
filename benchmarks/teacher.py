"""One model that has learned from a pair: the tiny pair, served by vLLM as a teacher, teaches the tiny big base.

    .venv-vllm/bin/python -m benchmarks.teacher --seeds 2

Three ways to the same student, with the same prompts, steps, batches and learning rate. One is on-policy distillation
by TRL's `ServerDistillationTrainer`: the student writes, the teacher gives log pi of every token. Two are supervised
fine-tuning by TRL's `SFTTrainer` on answers that the same server has written, as the pair or as q* alone: the rule of
each request decides. What is measured stands in results/teacher.json after each run; a stopped one goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.experimental.server_distillation import ServerDistillationConfig, ServerDistillationTrainer

from benchmarks.harness import RESULTS, save
from kad import tiny
from kad.engines.pair import Pair
from kad.engines.transformers.model import TransformersModel
from kad.evaluation.results.intervals import wilson
from kad.tiny.measure import attempt

BATCH = 16
POINTS = (10, 20, 40, 80)
SERVER = ("--enforce-eager", "--dtype", "float32", "--max-model-len", "512", "--seed", "0")
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TOKENIZERS_PARALLELISM": "false", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
}  # fmt: skip
# How the student learns, and from whom: a rule of the request, None for the pair's own.
WAYS = {
    "distilled from the pair": (ServerDistillationTrainer, None),
    "fine-tuned on the pair's answers": (SFTTrainer, None),
    "fine-tuned on q*'s answers": (SFTTrainer, "aligned_only"),
}


@contextmanager
def teacher() -> Iterator[str]:
    """The address of `kad serve tiny --teacher`, while it runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "kad", "serve", "tiny", "--teacher", "--port", port, *SERVER]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        with log.open("w") as output:
            server = subprocess.Popen(command, env=os.environ | ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT)
        try:
            while "A teacher at" not in log.read_text():
                if server.poll() is not None:
                    raise RuntimeError(f"The teacher did not start:\n{log.read_text()[-4000:]}")
                time.sleep(1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait()


@lru_cache
def answers(address: str, rule: str | None, problems: tuple[tiny.Problem, ...]) -> list[str]:
    """What the pair answers, greedily, under a rule."""

    def ask(problem: tiny.Problem) -> str:
        body = {"model": "tiny", "messages": problem.messages(), "max_tokens": 112, "temperature": 0.0}
        body |= {"vllm_xargs": {"rule": rule}} if rule else {}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{address}/v1/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request) as answer:
            text: str = json.load(answer)["choices"][0]["message"]["content"]
        return text

    with ThreadPoolExecutor(32) as pool:
        return list(pool.map(ask, problems))


def solved(model: Any, held_out: Sequence[tiny.Problem]) -> str:
    """A 1 for each problem that a model solves, greedily, else a 0."""
    marks = attempt(model, AutoTokenizer.from_pretrained(tiny.path("pair")), held_out, batch_size=100)
    return "".join("01"[mark.correct] for mark in marks)


class _Curve(TrainerCallback):
    """Measures the student at each of `POINTS`."""

    def __init__(self, held_out: Sequence[tiny.Problem]) -> None:
        self.held_out, self.measuring = held_out, 0.0
        self.curve: dict[str, str] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        if state.global_step in POINTS:
            begin = time.perf_counter()
            model.eval()
            self.curve[str(state.global_step)] = solved(Pair.one(TransformersModel(model)), self.held_out)
            model.train()
            self.measuring += time.perf_counter() - begin


def learn(
    way: str, seed: int, problems: tuple[tiny.Problem, ...], held_out: Sequence[tiny.Problem], address: str
) -> dict[str, Any]:
    """One student: what it solves by steps, and how long it took."""
    trainer_class, rule = WAYS[way]
    settings: dict[str, Any] = {
        "per_device_train_batch_size": BATCH, "max_steps": POINTS[-1], "learning_rate": 3e-4, "seed": seed,
        "lr_scheduler_type": "constant", "report_to": [], "save_strategy": "no", "logging_steps": 10, "bf16": False,
        "use_cpu": True, "gradient_checkpointing": False, "disable_tqdm": True,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tiny.path("big-base"), dtype=torch.float32)
    rows: list[dict[str, Any]] = [{"prompt": problem.messages()} for problem in problems]
    if trainer_class is SFTTrainer:
        for row, answer in zip(rows, answers(address, rule, problems), strict=True):
            row["completion"] = [{"role": "assistant", "content": answer}]
    with tempfile.TemporaryDirectory() as folder:
        if trainer_class is SFTTrainer:
            config = SFTConfig(output_dir=folder, **settings)
        else:
            config = ServerDistillationConfig(
                output_dir=folder, teacher_model_server_url=address, beta=0.0, loss_top_k=5, temperature=1.0,
                max_completion_length=80, **settings,
            )  # fmt: skip
        measured = _Curve(held_out)
        trainer = trainer_class(
            model=model, args=config, train_dataset=Dataset.from_list(rows), callbacks=[measured],
            processing_class=AutoTokenizer.from_pretrained(tiny.path("pair")),
        )  # fmt: skip
        begin = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begin - measured.measuring
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"solved": measured.curve, "seconds": round(seconds, 1), "loss": [float(losses[0]), float(losses[-1])]}


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """Per cent solved with 95 % intervals, over all problems, and over those that q* alone fails.

    The mean over the seeds; they share their problems, so the interval counts each problem once.
    """
    alone = result["alone"]
    failed = [number for number, mark in enumerate(alone["q*"]) if mark == "0"]

    def share(marks: Sequence[str]) -> list[float]:
        mean = sum(mark.count("1") for mark in marks) / sum(map(len, marks))
        found = wilson(mean, len(marks[0]))
        return [round(100 * value, 1) for value in (mean, found.low, found.high)]

    def both(marks: Sequence[str]) -> dict[str, list[float]]:
        return {"all": share(marks), "q* fails": share(["".join(mark[n] for n in failed) for mark in marks])}

    students = {
        way: {str(at): both([run["solved"][str(at)] for run in runs.values()]) for at in POINTS}
        for way, runs in result["students"].items()
    }
    return {"alone": {name: both([marks]) for name, marks in alone.items()}, "students": students}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--problems", type=int, default=100, help="held-out problems that are solved at each point")
    parser.add_argument("--again", action="store_true", help="measure anew what stands in the result already")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    path = RESULTS / "teacher.json"
    settings = {"steps": list(POINTS), "batch": BATCH, "problems": asked.problems}
    stored = json.loads(path.read_text()) if path.exists() and not asked.again else {}
    result = stored if stored.get("settings") == settings else {"settings": settings, "alone": {}, "students": {}}
    result.pop("machine", None)
    training = tuple(tiny.problems("train", POINTS[-1] * BATCH, seed=1))
    held_out = tiny.problems("held-out", asked.problems)

    def keep() -> None:
        save("teacher", result | {"summary": summary(result)})

    single = {"p": tiny.path("big-base"), "q*": tiny.path("small-aligned")}
    for name in (*single, "pair"):
        if name not in result["alone"]:
            model = tiny.pair() if name == "pair" else Pair.one(
                TransformersModel(AutoModelForCausalLM.from_pretrained(single[name], dtype=torch.float32))
            )  # fmt: skip
            result["alone"][name] = solved(model, held_out)
    with teacher() as address:
        for seed in range(asked.seeds):
            for way in WAYS:
                runs = result["students"].get(way, {})
                if str(seed) not in runs:
                    run = learn(way, seed, training, held_out, address)
                    result["students"][way] = {**runs, str(seed): run}
                    keep()
                    print(way, seed, {at: marks.count("1") for at, marks in run["solved"].items()}, flush=True)


if __name__ == "__main__":
    main()

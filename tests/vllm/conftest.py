"""Pairs, engines in processes of their own, and the Transformers model they are held against.

These tests run in vLLM's own virtual environment: make vllm-test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import run_engine
import torch
from forks import engine_environment, run_apart
from models import make_family
from safetensors.torch import load_file, save_file

from kad import KadForCausalLM
from kad.pair.sources import resolve_pair

Engine = Callable[..., dict[str, Any]]
POISON = 7
_FOLDER = Path(__file__).parent
_GPU = torch.cuda.is_available()
_SMALL = {"enforce_eager": True, "max_model_len": 256, "max_num_seqs": 64, "dtype": "float32", "seed": 0}
if _GPU:  # several engines at a time: a share of the memory, and none that is measured while others come and go
    _SMALL |= {"gpu_memory_utilization": 0.05, "kv_cache_memory_bytes": 1 << 28}


@pytest.fixture(scope="session")
def tiny() -> str:
    """The embedded pair, trained: what its models are sure of and what not is like real models."""
    return resolve_pair("tiny")


@pytest.fixture(scope="session")
def random_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of unlike shapes and paddings."""
    return make_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="session")
def poisoned_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair whose base model is damaged at the token `POISON`: after it, all it says is NaN."""
    pair = make_family(tmp_path_factory.mktemp("poisoned"))
    for role in ("base", "aligned"):
        weights = pair.parent / role / "model.safetensors"
        tensors = load_file(weights)
        # Nobody says it of its own accord: a draft of it would spoil the request that it is drafted for.
        tensors["lm_head.weight"][POISON] = 0.0
        if role == "base":
            tensors["model.embed_tokens.weight"][POISON] = torch.nan
        save_file(tensors, weights, metadata={"format": "pt"})
    return pair


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Run a job (see run_engine.py): engine(pair, batches, environment={...}, **engine_arguments) -> results.

    With second_runner=True vLLM's second model runner runs it: without a GPU in Triton's interpreter (see
    run_interpreted.py). On a GPU each engine is a fresh process, as CUDA cannot be forked.
    """

    def run(
        pair: Any,
        batches: list[Any],
        environment: dict[str, str] | None = None,
        second_runner: bool = False,
        **arguments: Any,
    ) -> dict[str, Any]:
        job = {"engine": {"model": str(pair), **_SMALL, **arguments}, "batches": batches}
        if environment is None and not second_runner and not _GPU:
            return run_apart(run_engine.run, job)
        script = _FOLDER / ("run_interpreted.py" if second_runner and not _GPU else "run_engine.py")
        runner = {"VLLM_USE_V2_MODEL_RUNNER": str(int(second_runner))} if _GPU else {}
        result = tmp_path_factory.mktemp("engine") / "result.json"
        done = subprocess.run(
            [sys.executable, str(script), str(result)],
            input=json.dumps(job),
            env=os.environ | engine_environment() | runner | (environment or {}),
            capture_output=True,
            text=True,
            timeout=1500 if second_runner else 600,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
        answer: dict[str, Any] = json.loads(result.read_text())
        return answer

    return run


def speculation(random_pair: Path, method: str = "probabilistic") -> dict[str, Any]:
    """vLLM's option that lets the aligned model of a pair from `make_family` draft."""
    return {
        "method": "draft_model",
        "model": str(random_pair.parent / "aligned"),
        "num_speculative_tokens": 3,
        "draft_sample_method": method,
    }


@pytest.fixture(scope="session")
def log_pi() -> Callable[..., torch.Tensor]:
    """log_pi(pair, rule, ids) -> log pi after each prefix, by Transformers in float32.

    ids (positions,) -> (positions, vocab), or (batch, positions) -> (batch, positions, vocab).
    """
    loaded: dict[str, KadForCausalLM] = {}

    def compute(pair: Any, rule: str | None, token_ids: Any) -> torch.Tensor:
        if str(pair) not in loaded:
            loaded[str(pair)] = KadForCausalLM.from_pretrained(str(pair), dtype=torch.float32)
        model = loaded[str(pair)]
        with torch.no_grad(), model.using(rule=rule):
            ids = torch.as_tensor(token_ids)
            logits: torch.Tensor = model(input_ids=ids.reshape(-1, ids.shape[-1])).logits
        return logits.reshape(*ids.shape, -1)

    return compute

"""lm-eval's own command on a pair, and the numbers it gets against the composition's definition."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch

import kad
from kad.engines.load import first_device
from kad.errors import UsageError
from kad.evaluation.harness import KadLM, register

pytestmark = pytest.mark.core


@pytest.fixture(scope="module")
def lm(folders: dict[str, Path]) -> KadLM:
    return KadLM(base=str(folders["base"]), aligned=str(folders["aligned"]), rule="dual:threshold=0.2", batch_size=2)


def instance(kind: str, *arguments: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0, metadata=("test", 0, 1))


@pytest.mark.supports("lm-eval", "log-likelihoods", rules=())
def test_log_likelihoods_are_those_of_the_composition(lm: KadLM, folders: dict[str, Path]) -> None:
    pairs = [("What is", " two"), ("A rather longer context than that", " x")]
    found = lm.loglikelihood([instance("loglikelihood", *pair) for pair in pairs])
    model = kad.KadForCausalLM.from_models(str(folders["base"]), str(folders["aligned"]), rule="dual:threshold=0.2")
    for (context, continuation), (log_likelihood, _) in zip(pairs, found, strict=True):
        ids = torch.tensor([lm.tok_encode(context + continuation)])
        size = len(lm.tok_encode(continuation, add_special_tokens=False))
        with torch.no_grad():
            p, q = (part(ids).logits[0, -size - 1 : -1].double() for part in (model.base, model.aligned))
        log_pi = kad.compose(model.rule, p, q).gather(1, ids[0, -size:, None])
        assert log_likelihood == pytest.approx(float(log_pi.sum()), abs=1e-3)


@pytest.mark.supports("lm-eval", "generation", rules=())
def test_greedy_generation_is_the_argmax_of_pi(lm: KadLM, folders: dict[str, Path]) -> None:
    prompts = ["Hello", "A longer prompt, so that the batch is padded"]
    arguments = {"until": [], "max_gen_toks": 10, "do_sample": False}
    texts = lm.generate_until([instance("generate_until", prompt, arguments) for prompt in prompts])
    model = kad.KadForCausalLM.from_models(str(folders["base"]), str(folders["aligned"]), rule="dual:threshold=0.2")
    for prompt, text in zip(prompts, texts, strict=True):
        ids = torch.tensor([lm.tok_encode(prompt)])
        new = model.generate(ids, do_sample=False, max_new_tokens=10)[0, ids.shape[1] :]
        assert lm.tok_decode(new.tolist()) == text


def test_speculation_takes_one_request_at_a_time(folders: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="one request at a time"):
        KadLM(base=str(folders["base"]), aligned=str(folders["aligned"]), speculative=True, batch_size=2)
    with pytest.raises(UsageError, match="`base` needs `aligned` beside it"):
        KadLM(base=str(folders["base"]))


def test_a_device_that_is_not_there_is_replaced_as_lm_eval_does(folders: dict[str, Path]) -> None:
    """lm-eval's command names cuda:0 where nobody says a device."""
    model = KadLM(base=str(folders["base"]), aligned=str(folders["aligned"]), device="cuda:77")
    assert str(model.model.base.device) == first_device()


def test_the_entry_point_names_the_model() -> None:
    (found,) = entry_points(group="lm_eval.models", name="kad")
    assert found.load() is KadLM


def test_registering_makes_the_name_known() -> None:
    from lm_eval.api.registry import get_model

    register()
    register()
    assert get_model("kad") is KadLM


@pytest.mark.slow
def test_lm_evals_command_runs_on_a_pair(folders: dict[str, Path], tmp_path: Path) -> None:
    pair = tmp_path / "pair"
    kad.KadForCausalLM.from_models(str(folders["base"]), str(folders["aligned"])).save_pretrained(pair)
    command = [sys.executable, "-m", "kad.evaluation.harness", "run", "--model", "kad", "--model_args", f"pair={pair}"]
    tasks = [
        "--tasks",
        "kad_gsm8k",
        "--metadata",
        json.dumps({"data_dir": str(Path(__file__).parent / "golden" / "rows")}),
    ]
    rest = [
        "--apply_chat_template",
        "--gen_kwargs",
        "max_gen_toks=8",
        "--output_path",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, *tasks, *rest], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (json.loads(path.read_text()) for path in (tmp_path / "out").rglob("results_*.json"))
    assert set(results["results"]["kad_gsm8k"]) >= {"paper,none", "strict,none"}
    assert results["n-samples"]["kad_gsm8k"]["effective"] == 1

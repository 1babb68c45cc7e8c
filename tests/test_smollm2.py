"""Real weights: SmolLM2-135M-Instruct as the aligned model, a base of the same vocabulary made from it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import smollm2

import kad
import needs

pytestmark = [pytest.mark.integration, pytest.mark.slow, needs.smollm2]
QUESTION = "What is the capital of France?"


def kad_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kad", *arguments], capture_output=True, text=True, check=False, timeout=600
    )


def test_a_chat_prompt_is_answered_through_the_command_line_from_the_gguf_file(tmp_path: Path) -> None:
    reference = smollm2.gguf()
    packed = kad_command(
        *("pack", "--base", str(smollm2.perturbed()), "--aligned", reference.model, "-o", str(tmp_path / "pair")),
        *("--aligned-gguf-file", reference.kwargs["gguf_file"], "--rule", "dual:threshold=0.4"),
    )
    assert packed.returncode == 0, packed.stderr
    assert not list((tmp_path / "pair").glob("*.safetensors"))
    done = kad_command(
        *("generate", QUESTION, "--pair", str(tmp_path / "pair"), "--temperature", "0"),
        *("--max-new-tokens", "24", "--json"),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert "Paris" in result["text"]
    assert result["token_ids"]
    assert result["tokens_per_second"] > 0


@pytest.mark.supports("Transformers", "GGUF weights", rules=())
def test_the_composition_follows_its_definition_on_real_weights() -> None:
    model = kad.KadForCausalLM.from_models(str(smollm2.perturbed()), str(smollm2.aligned()), dtype="float32")
    ids = torch.randint(1000, 40_000, (1, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        base, aligned = (part(ids).logits for part in (model.base, model.aligned))
        for rule in ("dual:threshold=0.4", "primal:budget=0.9", "confidence_bet", "mixture:weight=0.5"):
            model.rule = rule
            dense = kad.compose(kad.parse_rule(rule), base.double(), aligned.double())
            torch.testing.assert_close(model(ids).logits.double(), dense, atol=2e-4, rtol=0)

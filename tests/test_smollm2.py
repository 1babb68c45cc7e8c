"""Real weights: SmolLM2-135M-Instruct as the aligned model, a base of the same vocabulary made from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks import smollm2
from typer.testing import CliRunner

import kad
import needs
from cli_runs import as_json, generate
from kad.cli.main import app

pytestmark = [pytest.mark.integration, pytest.mark.slow, needs.smollm2]
QUESTION = "What is the capital of France?"


def test_a_chat_prompt_is_answered_through_the_command_line_from_the_gguf_file(tmp_path: Path) -> None:
    reference, pair = smollm2.gguf(), tmp_path / "pair"
    packed = CliRunner().invoke(
        app,
        [
            *("pack", "--base", str(smollm2.perturbed()), "--aligned", reference.model, "-o", str(pair)),
            *("--aligned-gguf-file", reference.kwargs["gguf_file"], "--rule", "dual:threshold=0.4"),
        ],
    )
    assert packed.exit_code == 0, packed.stderr
    assert not list(pair.glob("*.safetensors"))
    result = as_json(generate(QUESTION, "--pair", pair, "--temperature", 0, "--max-new-tokens", 24, "--json"))
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

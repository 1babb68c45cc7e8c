"""A pair in a pair, its models run by llama.cpp, MLX and Transformers, against the same pair run by Transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import kad
from conftest import ALIGNED, BASE, EXACT, REFERENCE
from kad.engines.pair import Pair
from kad.pair.folder import pack
from kad.pair.sources import Source

QUESTION = "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?"


@pytest.mark.parametrize(
    "kinds",
    [("f32", "f32", "f32"), ("mlx", "mlx", "mlx"), ("f32", "mlx", "transformers"), ("mlx", "transformers", "f32")],
)
def test_models_of_any_engines(kinds: tuple[str, str, str], files: Callable[[str, str], Path], tmp_path: Path) -> None:
    def nested(folder: Path, kinds: tuple[str, str, str]) -> kad.KadForCausalLM | Pair:
        places = [
            Source.parse(f"tiny:{model}" if kind == "transformers" else str(files(model, kind)))
            for model, kind in zip((BASE, REFERENCE, ALIGNED), kinds, strict=True)
        ]
        pack({"base": places[1], "aligned": places[2]}, folder / "inner", rule="mixture:weight=0.2")
        inner = Source.parse(str(folder / "inner"))
        pack({"base": places[0], "aligned": inner}, folder / "outer", rule="dual:threshold=0.4")
        options = {"engine_options": EXACT} if "f32" in kinds else {}
        return kad.load(str(folder / "outer"), dtype="float32", device="cpu", **options)

    ours, theirs = nested(tmp_path / "ours", kinds), nested(tmp_path / "theirs", ("transformers",) * 3)
    greedy = kad.Sampling(temperature=0, max_new_tokens=60)
    expected = kad.generate(theirs, QUESTION, sampling=greedy, num_draft_tokens=0)
    for drafts in (0, 4):
        found = kad.generate(ours, QUESTION, sampling=greedy, num_draft_tokens=drafts)
        assert found.token_ids == expected.token_ids
    scores = [kad.score(pair, QUESTION, expected.token_ids).log_pi for pair in (ours, theirs)]
    torch.testing.assert_close(*scores, atol=2e-3, rtol=0)
    talk = kad.Conversation(ours, sampling=greedy, num_draft_tokens=3)
    talk.say("Ann has 5 pens. She buys 8 more. How many pens does she have now?").finish()
    talk.turns = []
    assert talk.say(QUESTION).finish().token_ids == expected.token_ids

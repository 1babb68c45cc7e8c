"""Models with recurrent layers in llama.cpp and MLX: they draft, go back and are exact, against Transformers."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hybrids import KINDS, TOKENIZER, to_gguf, write
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import kad
from conftest import EXACT
from kad.engines.pair import Pair
from kad.method.replay import Replay
from speculative_tables import total_variation
from test_engines import LETTERS, PROMPTS, enumerated, true_texts

ENGINES = ("llama.cpp", "MLX")
GREEDY = kad.Sampling(temperature=0, max_new_tokens=24)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Pair, tuple[Path, Path]]]:
    """load(kind, engine): a pair of random models, and their folders. `letters`: of three tokens."""
    folder = tmp_path_factory.mktemp("hybrids")
    tokens = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokens.add_special_tokens(["a"])
    PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="a", pad_token="a").save_pretrained(folder / "letters")

    def make(kind: str, engine: str, letters: bool = False) -> tuple[Pair, tuple[Path, Path]]:
        world = (folder / "letters", LETTERS) if letters else (TOKENIZER, 768)
        places = [folder / f"{kind}-{width}-{world[1]}" for width in (64, 32)]
        for place, width in zip(places, (64, 32), strict=True):
            if not place.exists():
                write(kind, width, place, *world)
        named = [place if engine == "MLX" else to_gguf(kind, place, place.with_suffix(".gguf")) for place in places]
        options = {"engine_options": EXACT} if engine == "llama.cpp" else {"engine": "mlx"}
        pair: Any = kad.load(base=str(named[0]), aligned=str(named[1]), rule="mixture:weight=0.5", **options)
        pair.generation_config.eos_token_id = None
        return pair, (places[0], places[1])

    return make


@pytest.mark.parametrize(("kind", "engine"), list(product(KINDS, ENGINES)))
def test_rows_after_any_walk_are_those_of_transformers(load: Any, kind: str, engine: str) -> None:
    """Over random tokens, and back, against passes over the whole text without a cache."""
    pair, (folder, _) = load(kind, engine)
    whole, choose, text = AutoModelForCausalLM.from_pretrained(folder), random.Random(0), torch.zeros(0).long()
    scorer = pair.scorers(["base"])["base"]
    assert isinstance(scorer, Replay)
    for _ in range(60):
        new = torch.tensor([choose.randrange(5, 700) for _ in range(choose.choice([1, 1, 2, 5, 20]))])
        text = torch.cat((text, new))
        rows = scorer.advance(text[scorer.processed :], len(new))
        with torch.no_grad():
            truth = whole(text.unsqueeze(0), use_cache=False).logits[0, -len(new) :]
        torch.testing.assert_close(rows, truth, atol=1e-2, rtol=0)  # the spread of a row is 1 to 5
        text = text[: max(0, len(text) - choose.choice([0, 0, 1, 2, len(new), 40]))]
        scorer.rollback(len(text))


@pytest.mark.parametrize(("kind", "engine"), list(product(KINDS, ENGINES)))
def test_a_text_with_drafts_is_that_without_and_a_turn_reads_what_is_new(load: Any, kind: str, engine: str) -> None:
    pair, _ = load(kind, engine)
    for prompt in PROMPTS[:2]:
        plain = kad.generate(pair, prompt, sampling=GREEDY, num_draft_tokens=0).token_ids
        for drafts in (1, 4, "auto"):
            answer = kad.generate(pair, prompt, sampling=GREEDY, num_draft_tokens=drafts)
            assert parted(pair, answer.prompt_ids, plain, answer.token_ids) < 1e-3
            assert answer.statistics is not None
            assert drafts == "auto" or answer.statistics.accepted < answer.statistics.drafted
    talk = kad.Conversation(pair, sampling=GREEDY, num_draft_tokens=3)
    for text in PROMPTS:
        turn = talk.say(text).finish()
        anew = kad.generate(pair, turn.prompt_ids, sampling=GREEDY, num_draft_tokens=0)
        assert parted(pair, turn.prompt_ids, anew.token_ids, turn.token_ids) < 1e-3
        kept = talk.kept._kept[-1]
        assert all(read.scorer.processed == len(turn.prompt_ids) + len(turn.token_ids) - 1 for read in kept.values())


def parted(pair: Pair, prompt: list[int], one: list[int], other: list[int]) -> float:
    """How far apart the tokens are in log pi where two texts part; 0 if they do not."""
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), None)
    if at is None:
        return 0.0
    pi = [kad.score(pair, prompt, text[: at + 1]).log_pi[-1] for text in (one, other)]
    return abs(float(pi[0] - pi[1]))


@pytest.mark.parametrize(("kind", "engine"), list(product(KINDS, ENGINES)))
def test_every_outcome_of_the_loop(load: Any, kind: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, folders = load(kind, engine, letters=True)
    theirs: Any = kad.load(base=str(folders[0]), aligned=str(folders[1]), device="cpu", dtype="float32")
    truth = true_texts(theirs, "dual:threshold=0.4")
    assert total_variation(enumerated(pair, "dual:threshold=0.4", 2, monkeypatch), truth) < 1e-3


def test_a_state_that_is_not_put_back_is_seen(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof fails where keys and values are cut, and the recurrent state stays as it is."""
    from kad.engines.mlx.model import MlxScorer

    def keys_only(self: MlxScorer, saved: Any) -> None:
        for layer, state in zip(self._layers, saved[1], strict=True):
            if state is None:
                layer.trim(self.processed - saved[0])
        self.processed = saved[0]

    monkeypatch.setattr(MlxScorer, "restore", keys_only)
    with pytest.raises(AssertionError):
        test_every_outcome_of_the_loop(load, "lfm2", "MLX", monkeypatch)

"""A GGUF base model with a tokenizer of its own, under the tiny aligned model: in llama.cpp and in Transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recipes.tiny.export import to_gguf
from test_commands import kad as command

import kad
from conftest import ALIGNED, BASE, EXACT
from kad import tiny
from kad.engines.pair import Pair, pair_of
from kad.engines.transformers.loading import load_model
from kad.errors import UsageError
from kad.pair.model_files import load_tokenizer
from kad.pair.sources import Source
from kad.text.contexts import Asking
from kad.tokens.vocabulary import OWN

GREEDY = kad.Sampling(temperature=0, max_new_tokens=16)
QUESTION = "Ann has 5 pens. She buys 18 more. How many pens does she have?"
PROMPTS = [QUESTION, "Is <|end|> a word? It costs 1,234 €, naïve."]
RULES = ["dual:threshold=0.2", "primal:budget=0.9", "nudging"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base model without its last 100 tokens, as a GGUF file: it writes words in other pieces."""
    whole, folder, file = tiny.path(BASE), tmp_path_factory.mktemp("other"), tmp_path_factory.mktemp("file") / "b.gguf"
    load_tokenizer(Source(str(whole))).save_pretrained(folder)
    plain = json.loads((folder / "tokenizer.json").read_text())
    size = len(plain["model"]["vocab"]) - 100
    plain["model"]["vocab"] = {token: index for token, index in plain["model"]["vocab"].items() if index < size}
    plain["model"]["merges"] = plain["model"]["merges"][:-100]
    (folder / "tokenizer.json").write_text(json.dumps(plain))
    model: Any = load_model(Source(str(whole), None, {"dtype": "float32"}))
    model.resize_token_embeddings(size)
    model.save_pretrained(folder)
    return to_gguf(folder, file)


@pytest.fixture(scope="module")
def pairs(base: Path, files: Callable[[str, str], Path]) -> tuple[Pair, kad.KadForCausalLM]:
    """The files in llama.cpp, and as full weights in Transformers."""
    names: Any = {"base": str(base), "aligned": str(files(ALIGNED, "f32")), "device": "cpu"}
    ours: Any = kad.load(**names, engine="llama_cpp", engine_options=EXACT)
    theirs: Any = kad.load(**names, engine="transformers", dtype="float32")
    return ours, theirs


def test_the_base_model_reads_the_same_tokens(pairs: Any) -> None:
    """Names of special tokens in a question stay text, for the base model alone."""
    ours, theirs = pairs
    assert ours.config.base_tokenizer == theirs.config.base_tokenizer == OWN
    with pytest.raises(UsageError, match="There is no token 99999 in"):
        ours.tokenizer.decode([5, 99999])
    for prompt in PROMPTS:
        asking = Asking(prompt, base_prompt="qa")
        assert asking.context(pair_of(ours)) == asking.context(pair_of(theirs))


def test_a_converted_tokenizer_is_kept(base: Path, pairs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made once for a file, again where it is damaged, and used where nothing can be kept."""
    tokenizer = pairs[0].models["base"].tokenizer
    asked, truth = [], load_tokenizer(Source(str(base.parent), None, {"gguf_file": base.name})).backend_tokenizer

    def convert(source: Source) -> Any:
        asked.append(source)
        return load_tokenizer(source)

    def encoded() -> list[int]:
        tokenizer.__dict__.pop("backend_tokenizer", None)
        return tokenizer.backend_tokenizer.encode(PROMPTS[1]).ids

    monkeypatch.setattr("kad.engines.llama_cpp.tokenizer.load_tokenizer", convert)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    expected = truth.encode(PROMPTS[1]).ids
    assert [encoded(), encoded()] == [expected, expected]
    assert len(asked) == 1
    [kept] = (tmp_path / "kad" / "tokenizers").iterdir()
    kept.write_text("damaged")
    assert [encoded(), encoded()] == [expected, expected]
    assert len(asked) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert encoded() == expected


@pytest.mark.supports("llama.cpp", "a base model with a tokenizer of its own", rules=())
@pytest.mark.parametrize("rule", RULES)
def test_log_pi_and_texts_are_those_of_transformers(pairs: Any, rule: str) -> None:
    ours, theirs = pairs
    for prompt in PROMPTS:
        asked: Any = {"base_prompt": "qa", "rule": rule}
        answers = [kad.generate(theirs, prompt, sampling=GREEDY, **asked)]
        answers += [kad.generate(ours, prompt, sampling=GREEDY, num_draft_tokens=n, **asked) for n in (0, 2)]
        assert len({answer.text for answer in answers}) == 1
        scores = [kad.score(model, prompt, answers[0].token_ids, **asked) for model in pairs]
        for name in ("log_pi", "log_p", "log_aligned"):
            one, other = (getattr(score, name).clamp(min=-30) for score in scores)
            assert (one - other).abs().max() < 1e-4, name
        assert max(piece.base_share for piece in answers[0].pieces) > 0.5


def test_the_commands(base: Path, files: Callable[[str, str], Path], pairs: Any, tmp_path: Path) -> None:
    names = ["--base", base, "--aligned", files(ALIGNED, "f32")]
    asked = [QUESTION, "--base-prompt", "qa", "--temperature", "0", "--max-new-tokens", "16"]
    wanted = kad.generate(pairs[1], QUESTION, base_prompt="qa", sampling=GREEDY).text
    assert command("generate", *asked, *names).stdout.rstrip("\n") == wanted.rstrip("\n")
    command("pack", *names, "-o", tmp_path / "pair")
    assert command("generate", *asked, "--pair", tmp_path / "pair").stdout.rstrip("\n") == wanted.rstrip("\n")

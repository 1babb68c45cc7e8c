"""Engines follow the files of each model, and a pair composes models of any engines as Transformers composes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import Gemma2Config, Gemma2ForCausalLM
from typer.testing import CliRunner

import kad
from conftest import VOCAB, make_tokenizer
from kad import tiny
from kad.cli.main import app
from kad.engines.load import engine_for, gguf_file, is_mlx
from kad.engines.pair import Pair
from kad.engines.transformers.loading import load_model
from kad.engines.transformers.model import TransformersModel
from kad.errors import MissingExtraError, OptionError, PairError, VocabularyError
from kad.pair import folder
from kad.pair.base_prompt import BasePrompt
from kad.pair.config import KadConfig
from kad.pair.parts import read_config
from kad.pair.sources import Source

PROMPT = "Ann has 5 pens. She buys 8 more. How many pens does she have now?"


def transformers_pair(rule: str = "dual:threshold=0.4") -> Pair:
    sources = {"base": Source.parse("tiny:big-base"), "aligned": Source.parse("tiny:small-aligned")}
    config = KadConfig(**{role: source.to_dict() for role, source in sources.items()}, rule=rule)
    return Pair(config, {role: TransformersModel(load_model(source), source) for role, source in sources.items()})


@pytest.mark.parametrize("draft", [0, 3])
def test_a_pair_of_single_models_is_the_composed_model(draft: int) -> None:
    ours, theirs = transformers_pair(), kad.load("tiny", device="cpu")
    greedy = kad.Sampling(temperature=0)
    answers = [kad.generate(m, PROMPT, sampling=greedy, num_draft_tokens=draft) for m in (ours, theirs)]
    assert answers[0].token_ids == answers[1].token_ids
    scores = [kad.score(m, PROMPT, answers[0].text).log_pi for m in (ours, theirs)]
    assert torch.equal(*scores)


def test_the_rule_of_a_pair_can_be_replaced_and_a_rule_without_its_model_is_refused() -> None:
    model = transformers_pair("primal:budget=0.9")
    assert str(model.rule) == "primal:budget=0.9"
    with model.using("aligned_only"):
        assert str(model.composition.rule) == "aligned_only"
    with pytest.raises(kad.KadError, match="needs the reference model"):
        model.composed_by("implicit_reward")


def test_different_tokens_are_refused(folders: dict[str, Path]) -> None:
    sources = {"base": Source(str(folders["base"])), "aligned": Source.parse("tiny:small-aligned")}
    config = KadConfig(**{role: source.to_dict() for role, source in sources.items()})
    with pytest.raises(VocabularyError, match="different vocabularies"):
        Pair(config, {role: TransformersModel(load_model(source), source) for role, source in sources.items()})


def test_a_gguf_file_is_named_by_its_path_and_relative_to_the_pair(tmp_path: Path) -> None:
    file = tmp_path / "base.gguf"
    file.write_bytes(b"GGUF")
    source = Source.parse(str(file))
    assert (source.model, source.kwargs) == (str(tmp_path), {"gguf_file": "base.gguf"})
    assert gguf_file(source) == file
    assert source.to_dict()["model"] == str(file)
    pair = tmp_path / "pair"
    plain = source.to_dict(relative_to=pair)
    assert plain == {"model": "../base.gguf", "revision": None, "kwargs": {}}
    pair.mkdir()
    assert Source.parse(plain).located(pair) == source
    with pytest.raises(PairError, match="No GGUF file at"):
        Source.parse(str(tmp_path / "other.gguf"))


def test_the_engine_follows_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf, plain = Source(str(tmp_path), None, {"gguf_file": "m.gguf"}), Source("organization/name")
    for installed, expected in ((True, "llama_cpp"), (False, "transformers")):
        monkeypatch.setattr("kad.hosts.is_installed", lambda module, installed=installed: installed)
        assert engine_for(gguf) == expected
    assert engine_for(gguf, "transformers") == "transformers"
    assert engine_for(plain) == "transformers"
    with pytest.raises(MissingExtraError, match=r"kad-align\[llama-cpp\]"):
        engine_for(gguf, "llama_cpp")
    with pytest.raises(OptionError, match="runs GGUF files, but organization/name is none"):
        engine_for(plain, "llama_cpp")
    with pytest.raises(OptionError, match=r"m\.gguf is a GGUF file"):
        engine_for(gguf, "mlx")
    with pytest.raises(MissingExtraError, match=r"kad-align\[mlx\]"):
        engine_for(plain, "mlx")
    with pytest.raises(OptionError, match="Unknown `engine` 'onnx'"):
        engine_for(plain, "onnx")


def test_a_folder_of_mlx_is_seen_by_its_weights_or_its_quantization(tmp_path: Path) -> None:
    assert not is_mlx(Source(str(tiny.path("small-aligned"))))
    assert not is_mlx(Source(str(tmp_path)))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "mlx"})
    assert is_mlx(Source(str(tmp_path)))
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"quantization": {"group_size": 64, "bits": 4}}))
    assert is_mlx(Source(str(tmp_path)))
    assert engine_for(Source(str(tmp_path))) == "mlx"


def test_engine_options_need_an_engine_that_takes_them() -> None:
    with pytest.raises(OptionError, match="are for models that llama.cpp runs"):
        kad.load("tiny", engine_options={"context": 100})
    with pytest.raises(OptionError, match="Unknown `engine` 'onnx'"):
        kad.load("tiny", engine="onnx")


def test_the_configuration_of_a_pair_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What decides on the engines also makes the model; the overrides still reach it."""
    read: list[object] = []

    def counting(pair: object, **place: object) -> KadConfig:
        read.append(pair)
        return read_config(pair, **place)

    monkeypatch.setattr(folder, "read_config", counting)
    model = kad.load("tiny", rule="primal:budget=0.5", deferral_temperature=2.0, base_prompt="qa", device="cpu")
    assert read == ["tiny"]
    assert (str(model.rule), model.composition.deferral_temperature) == ("primal:budget=0.5", 2.0)
    assert model.base_prompt == BasePrompt.parse("qa")


def test_a_product_of_capped_and_free_logits_is_warned_of(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = Gemma2Config(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    capped, free = str(tmp_path), str(folders["aligned"])
    said = "logits are soft-capped in base (at 30) and not in aligned, which distorts products of them"
    pair = kad.load(base=capped, aligned=free, rule="dual", device="cpu")
    assert said not in caplog.text
    for _ in range(2):
        with pair.using("experts"):
            assert caplog.text.count(said) == 1
    kad.load(base=capped, aligned=capped, rule="experts", device="cpu")
    assert caplog.text.count("soft-capped") == 1
    shown = CliRunner().invoke(app, ["info", "--base", capped, "--aligned", free, "--json"])
    assert json.loads(shown.stdout)["soft_caps"] == said
    shown = CliRunner().invoke(app, ["info", "--base", capped, "--aligned", free], env={"COLUMNS": "120"})
    assert said in " ".join(shown.stdout.split())
    assert "soft" not in CliRunner().invoke(app, ["info", "tiny"]).stdout

"""Pair folders, model references, configurations and vocabularies: what is written, found, refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

import kad
from conftest import VOCAB, make_model, make_tokenizer
from kad.errors import OptionError, PairError, RuleError, VocabularyError
from kad.pair.config import KadConfig
from kad.pair.sources import Source, resolve_model, resolve_pair

pytestmark = pytest.mark.core


@pytest.fixture
def pair(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A pair folder beside copies of its models."""
    for role in folders:
        shutil.copytree(folders[role], tmp_path / role)
    model = kad.KadForCausalLM.from_models(
        str(tmp_path / "base"),
        str(tmp_path / "aligned"),
        reference=str(tmp_path / "reference"),
        rule="primal:budget=0.8",
        deferral_temperature=0.9,
        aligned_kwargs={"dtype": "float32"},
    )
    model.save_pretrained(tmp_path / "pair")
    return tmp_path / "pair"


def test_a_pair_is_a_few_kilobytes_without_weights(pair: Path) -> None:
    names = {file.name for file in pair.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert not any(name.endswith((".safetensors", ".bin", ".gguf")) for name in names)
    assert sum(file.stat().st_size for file in pair.iterdir()) < 64_000
    config = json.loads((pair / "config.json").read_text())
    assert config["model_type"] == "kad"
    assert config["base"]["model"] == "../base"
    assert config["aligned"]["kwargs"] == {"dtype": "float32"}
    assert (config["rule"], config["deferral_temperature"], config["vocab_size"]) == ("primal:budget=0.8", 0.9, VOCAB)


def test_a_pair_loads_as_it_was_by_every_door_and_after_moving(pair: Path, tmp_path: Path) -> None:
    ids = torch.arange(5, 15)[None]
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("pair", "base", "aligned", "reference"):
        shutil.move(tmp_path / name, moved / name)
    first = kad.KadForCausalLM.from_pretrained(moved / "pair", dtype="float32")
    second = AutoModelForCausalLM.from_pretrained(str(moved / "pair"), dtype=torch.float32)
    assert isinstance(second, kad.KadForCausalLM)
    assert isinstance(AutoConfig.from_pretrained(str(moved / "pair")), kad.KadConfig)
    assert str(first.rule) == "primal:budget=0.8"
    with torch.no_grad():
        assert torch.equal(first(ids).logits, second(ids).logits)
        expected = kad.compose(
            first.rule,
            *(make(ids).logits for make in (first.base, first.aligned)),
            deferral_temperature=0.9,
        )
        torch.testing.assert_close(first(ids).logits, expected)
    tokenizer = AutoTokenizer.from_pretrained(str(moved / "pair"))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False).startswith("[user]hi")


def test_overrides_when_loading(pair: Path) -> None:
    model = kad.KadForCausalLM.from_pretrained(pair, rule="base_only", deferral_temperature=1.0, dtype=torch.bfloat16)
    assert str(model.rule) == "base_only"
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(torch.arange(5, 9)[None]).logits.dtype == torch.float32
    with pytest.raises(PairError, match="Unknown option 'dtpye' for a pair. Allowed: .*dtype"):
        kad.KadForCausalLM.from_pretrained(pair, dtpye="float32")


def test_saving_again_keeps_the_references(pair: Path, tmp_path: Path) -> None:
    kad.KadForCausalLM.from_pretrained(pair).save_pretrained(tmp_path / "again")
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("pair", "again"))
    assert first == second
    far = tmp_path / "far" / "away"
    kad.KadForCausalLM.from_pretrained(pair).save_pretrained(far)
    assert Path(json.loads((far / "config.json").read_text())["base"]["model"]).is_absolute()
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_models_without_a_path_cannot_be_named(model: kad.KadForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(
        PairError, match="The base and aligned and reference model was given as an object without a path"
    ):
        model.save_pretrained(tmp_path / "pair")
    assert not (tmp_path / "pair").exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rul": "base_only"}, PairError, "Unknown key 'rul' in a pair's configuration. Did you mean 'rule'?"),
        ({"Rule": "base_only"}, PairError, "Unknown key 'Rule' in a pair's configuration. Did you mean 'rule'?"),
        ({"temperature": 2.0}, PairError, "Unknown key 'temperature' .* Did you mean 'deferral_temperature'?"),
        ({"alligned": {}}, PairError, "Unknown key 'alligned' in a pair's configuration. Did you mean 'aligned'?"),
        ({"rule": "dual:threshold=7"}, RuleError, "threshold must be a number from 0 to 1"),
        ({"base": {"model": "../base", "dtype": "float32"}}, PairError, r"has unknown keys \['dtype'\]"),
        ({"base": {"model": "../base", "kwargs": {"dtpe": 1}}}, PairError, "Unknown loading option 'dtpe' for ../base"),
        ({"base": {"model": "../nowhere"}}, PairError, "names the model ../nowhere, but there is no folder"),
        ({"aligned": None}, PairError, "names no base and aligned model"),
        ({"base": True}, PairError, "A model is named by a hub id or a path, but got True"),
        ({"base": {"model": "../base", "kwargs": True}}, PairError, "and kwargs, which are an object"),
        ({"base": {"model": "./" + "x" * 5000}}, PairError, "but there is no folder"),
    ],
)
def test_a_bad_configuration_is_refused(
    change: dict[str, Any], error: type[Exception], message: str, pair: Path
) -> None:
    config = json.loads((pair / "config.json").read_text()) | change
    (pair / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=message):
        kad.KadForCausalLM.from_pretrained(pair)


@pytest.mark.parametrize(
    "key", ["attention_sink_implementation", "_experts_backend", "base_model_pp_plan", "is_causal"]
)
def test_a_key_that_a_new_transformers_puts_in_is_accepted(key: str, pair: Path) -> None:
    config = json.loads((pair / "config.json").read_text()) | {key: None}
    (pair / "config.json").write_text(json.dumps(config))
    assert str(kad.KadForCausalLM.from_pretrained(pair).rule) == "primal:budget=0.8"


def test_the_keys_of_the_installed_transformers_are_accepted() -> None:
    KadConfig(**{key: value for key, value in PreTrainedConfig().to_dict().items() if key != "model_type"})


def test_only_safe_weights_are_loaded(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["base"], tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save(make_model(0).state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(PairError, match="Cannot load .*pickled.*safetensors"):
        kad.KadForCausalLM.from_models(str(tmp_path / "pickled"), str(folders["aligned"]))


def test_different_token_maps_are_refused_with_the_first_that_differ(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["base"], tmp_path / "other")
    text = (tmp_path / "other" / "tokenizer.json").read_text()
    data = json.loads(text)
    vocab = data["model"]["vocab"]
    vocab["A"], vocab["B"] = vocab["B"], vocab["A"]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(VocabularyError, match=r"2 ids stand for different tokens \(base / aligned\): id 36: 'B' / 'A'"):
        kad.KadForCausalLM.from_models(str(tmp_path / "other"), str(folders["aligned"]))


def test_references() -> None:
    assert Source.parse("org/name@v1.0") == Source("org/name", "v1.0")
    assert Source.parse({"model": "org/name"}) == Source("org/name")
    assert Path(resolve_model("tiny:big-base")).name == "big-base"
    assert (Path(resolve_pair("tiny")) / "config.json").is_file()
    with pytest.raises(PairError, match="Unknown model 'tiny:bigbase'. Choose from: tiny:big-base"):
        resolve_model("tiny:bigbase")
    with pytest.raises(PairError, match="No model folder at ./nowhere"):
        resolve_model("./nowhere")
    with pytest.raises(PairError, match="No pair at ./nowhere"):
        resolve_pair("./nowhere")
    with pytest.raises(PairError, match="No such folder: nope. Give a folder written by .* or tiny"):
        resolve_pair("nope")
    with pytest.raises(PairError, match="tiny:big-base is one model, not a pair. Give tiny, or both models"):
        resolve_pair("tiny:big-base")
    with pytest.raises(PairError, match="Unknown model 'tiny:huge'"):
        resolve_pair("tiny:huge")


def test_the_embedded_family_keeps_its_names_in_a_pair(tmp_path: Path) -> None:
    kad.tiny.pair().save_pretrained(tmp_path / "pair")
    config = json.loads((tmp_path / "pair" / "config.json").read_text())
    assert [config[role]["model"] for role in ("base", "aligned")] == ["tiny:big-base", "tiny:small-aligned"]
    assert kad.KadForCausalLM.from_pretrained(tmp_path / "pair").config.vocab_size == config["vocab_size"]


def test_an_unknown_hub_id_is_one_clear_error(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PairError, match="Cannot load no-such-org/no-such-model: "):
        kad.KadForCausalLM.from_models("no-such-org/no-such-model", str(folders["aligned"]))


def test_loaded_models_and_paths_mix(folders: dict[str, Path]) -> None:
    model = kad.KadForCausalLM.from_models(make_model(0), str(folders["aligned"]))
    assert model.config.base is None
    assert model.config.vocab_size == VOCAB
    assert make_tokenizer().get_vocab() == AutoTokenizer.from_pretrained(folders["aligned"]).get_vocab()


@pytest.mark.parametrize("role", ["base", "aligned"])
def test_load_takes_models_that_are_loaded(role: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """One of them, or all: the functions on text then work as on a pair with names."""
    named = {name: str(folders[name]) for name in ("base", "aligned")}
    mixed = kad.load(**named | {role: AutoModelForCausalLM.from_pretrained(folders[role])}, rule="dual:threshold=0.2")
    expected = kad.load(**named, rule="dual:threshold=0.2")
    short = kad.Sampling(max_new_tokens=8)
    answers = [kad.trace(model, "Hi", sampling=short, num_draft_tokens=2) for model in (expected, mixed)]
    assert answers[0].positions == answers[1].positions
    said = [kad.Conversation(model, sampling=short).say("Hi").finish().text for model in (expected, mixed)]
    assert said[0] == said[1] != ""
    mixed.save_pretrained(tmp_path / "written")
    assert kad.load(tmp_path / "written", device="cpu").config.vocab_size == expected.config.vocab_size


def test_a_loaded_model_without_a_path_is_given_its_tokenizer(folders: dict[str, Path]) -> None:
    model = kad.load(base=str(folders["base"]), aligned=make_model(1), tokenizer=make_tokenizer(), rule="base_only")
    assert kad.generate(model, "Hi", sampling=kad.Sampling(max_new_tokens=2)).text
    other = make_tokenizer(VOCAB - 1)
    with pytest.raises(VocabularyError, match="stand for different tokens"):
        kad.load(base=str(folders["base"]), aligned=make_model(1), tokenizer=other)


def test_load_takes_the_names_of_pytorch_for_its_types(folders: dict[str, Path]) -> None:
    named = {role: folders[role] for role in ("base", "aligned")}
    assert kad.load(**named, dtype=torch.bfloat16).base.dtype == torch.bfloat16
    with pytest.raises(OptionError, match="Unknown `dtype` 'int8'. Choose from: auto, float32"):
        kad.load(dtype=torch.int8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "llama_cpp"}, "Loaded models run in Transformers, but got `engine` llama_cpp"),
        ({"engine_options": {"context": 8}}, "`engine_options` are for models that llama.cpp runs"),
        ({"dtype": "bfloat16"}, "`dtype` is for models that kad loads, and these are loaded"),
        ({"aligned": None}, "`base` needs `aligned` beside it"),
        ({"pair": "tiny"}, "Give `pair` or `base` `aligned`, not both"),
        ({"aligned": "tiny:small-aligned", "tokenizer": "x"}, "`tokenizer` is that of a loaded aligned model"),
    ],
)
def test_what_means_nothing_for_loaded_models_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        kad.load(**{"base": make_model(0), "aligned": make_model(1)} | options)

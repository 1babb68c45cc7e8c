"""`kad pack`, `kad info`, `kad rules`."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

import kad
from conftest import make_model, make_tokenizer
from kad import tiny
from kad.cli.main import app
from kad.method.rules import rule as rule_module
from kad.rules import Dual, parse_rule, register, registry


def call(*arguments: Any, code: int = 0, **env: str) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120", **env})
    assert result.exit_code == code, f"{result.stderr}\n{result.exception!r}"
    if code == 2:
        assert result.stdout == ""
        assert len(result.stderr.strip().splitlines()) <= 2
    return result


@pytest.fixture
def two(folders: dict[str, Path]) -> list[str]:
    return ["--base", str(folders["base"]), "--aligned", str(folders["aligned"])]


# ---------------------------------------------------------------------- pack


def test_the_lines_to_copy_hold_in_a_shell_whatever_the_folder_is_called(two: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "a b; touch ran"
    lines = call("pack", *two, "-o", folder).stdout.splitlines()
    words = [shlex.split(line) for line in lines if line.startswith(("  kad ", "  vllm "))]
    assert words == [["kad", "generate", "--pair", str(folder), "..."], ["vllm", "serve", str(folder)]]
    folder.joinpath("config.json").unlink()
    said = call("info", folder, code=2).stderr.partition("with: ")[2]
    assert shlex.split(said) == ["kad", "pack", "-o", str(folder), "..."]


def test_a_packed_pair_is_the_composed_model(
    two: list[str], folders: dict[str, Path], tmp_path: Path, prompt: Any
) -> None:
    result = call("pack", *two, "--rule", "primal:budget=0.7", "-o", tmp_path / "pair")
    assert "no weights" in result.stdout
    for line in (f"kad generate --pair {tmp_path}", "KadForCausalLM.from_pretrained(", f"vllm serve {tmp_path}"):
        assert line in result.stdout.replace("\n", "")
    files = {file.name for file in (tmp_path / "pair").iterdir()}
    assert {"config.json", "tokenizer.json", "generation_config.json"} <= files
    assert not any("safetensors" in name for name in files)
    packed = kad.KadForCausalLM.from_pretrained(tmp_path / "pair")
    direct = kad.KadForCausalLM.from_models(str(folders["base"]), str(folders["aligned"]), rule="primal:budget=0.7")
    assert torch.equal(packed(prompt(5)).logits, direct(prompt(5)).logits)
    direct.save_pretrained(tmp_path / "direct")
    assert config_of(tmp_path / "pair") == config_of(tmp_path / "direct")


def config_of(pair: Path) -> Any:
    return json.loads((pair / "config.json").read_text())


def test_packing_needs_no_weights(two: list[str], folders: dict[str, Path], tmp_path: Path) -> None:
    bare = {role: tmp_path / role for role in ("base", "aligned")}
    for role, folder in bare.items():
        folder.mkdir()
        for file in folders[role].iterdir():
            if file.suffix != ".safetensors":
                (folder / file.name).write_bytes(file.read_bytes())
    call("pack", "--base", bare["base"], "--aligned", bare["aligned"], "-o", tmp_path / "pair")
    found = config_of(tmp_path / "pair")
    assert found["base"]["model"] == "../base"  # models beside the pair move with it
    assert found["vocab_size"] == 96


def test_loading_options_and_revisions_are_kept(two: list[str], tmp_path: Path) -> None:
    options = ["--dtype", "float16", "--base-dtype", "bfloat16", "--base-option", "attn_implementation=eager"]
    options += ["--aligned-option", 'max_memory={"0": "10GiB"}']
    found = json.loads(call("pack", *two, *options, "-o", tmp_path / "pair", "--json").stdout)
    assert found["base"]["kwargs"] == {"dtype": "bfloat16", "attn_implementation": "eager"}
    assert found["aligned"]["kwargs"] == {"dtype": "float16", "max_memory": {"0": "10GiB"}}
    assert found["files"]["config.json"] > 0
    assert kad.KadForCausalLM.from_pretrained(tmp_path / "pair", max_memory=None).base.dtype == torch.bfloat16


def test_a_pair_may_be_packed_anew_and_loses_what_is_stale(two: list[str], tmp_path: Path) -> None:
    pair = tmp_path / "pair"
    call("pack", *two, "-o", pair)
    (pair / "vocab.json").write_text("{}")  # of another tokenizer
    (pair / "NOTES.md").write_text("mine")
    call("pack", *two, "--rule", "base_only", "-o", pair)
    assert config_of(pair)["rule"] == "base_only"
    assert not (pair / "vocab.json").exists()
    assert (pair / "NOTES.md").read_text() == "mine"


def test_nothing_else_is_written_over(two: list[str], folders: dict[str, Path], tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in folders["base"].iterdir()}
    assert "is a folder that is not a pair" in call("pack", *two, "-o", folders["base"], code=2).stderr
    assert {file: file.read_bytes() for file in folders["base"].iterdir()} == before
    file = tmp_path / "file"
    file.write_text("mine")
    assert "is a file; a pair is a folder" in call("pack", *two, "-o", file, code=2).stderr
    assert "Cannot write the pair" in call("pack", *two, "-o", file / "pair", code=2).stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rule", "implicit_reward"], "needs the reference model. Give one with --reference."),
        (["--rule", "dul"], "Unknown rule 'dul'."),
        (["--deferral-temperature", "-1"], "--deferral-temperature must be in [0.01, 1000], but is -1."),
        (["--base-dtype", "int3"], "Unknown --base-dtype 'int3'. Choose from: auto, float32,"),
        (["--dtype", "int3"], "Unknown --dtype 'int3'."),
        (["--base-option", "device"], "--base-option takes KEY=VALUE, but got 'device'."),
        (["--base-option", "devicemap=auto"], "Unknown loading option 'devicemap'"),
        (["--reference-dtype", "float32"], "loading options for the reference model, but no --reference"),
        (["--aligned-subfolder", "nowhere"], "Cannot read the configuration of"),
    ],
)
def test_wrong_packing_leaves_nothing(two: list[str], tmp_path: Path, more: list[str], message: str) -> None:
    assert message in call("pack", *two, *more, "-o", tmp_path / "pair", code=2).stderr
    assert list(tmp_path.iterdir()) == []


def test_what_packing_needs() -> None:
    assert "kad pack needs --aligned, --out." in call("pack", "--base", "tiny:big-base", code=2).stderr


def test_packing_refuses_different_vocabularies(folders: dict[str, Path], tmp_path: Path) -> None:
    make_model(5, vocab=90).save_pretrained(tmp_path / "other")
    make_tokenizer(90).save_pretrained(tmp_path / "other")
    other = ["--base", folders["base"], "--aligned", tmp_path / "other"]
    assert "id 89:" in call("pack", *other, "-o", tmp_path / "pair", code=2).stderr
    assert not (tmp_path / "pair").exists()
    shown = CliRunner().invoke(app, ["info", *map(str, other)], env={"COLUMNS": "120"})  # but info shows it
    assert shown.exit_code == 2
    assert "no match: The base and aligned models have different vocabularies" in shown.stdout.replace("\n", " ")
    assert not json.loads(CliRunner().invoke(app, ["info", *map(str, other), "--json"]).stdout)["vocabulary"]["match"]


# ---------------------------------------------------------------------- info


def test_info_counts_what_the_weights_hold() -> None:
    found = json.loads(call("info", "tiny", "--json").stdout)
    assert found["rule"] == "dual:threshold=0.4"
    assert found["vocabulary"]["match"]
    for role, name in (("base", "big-base"), ("aligned", "small-aligned"), ("reference", "small-base")):
        model = found["models"][role]
        with safe_open(tiny.path(name) / "model.safetensors", "pt") as weights:
            tensors = [weights.get_tensor(key) for key in weights.keys()]  # noqa: SIM118  (no mapping)
        assert model["name"] == f"tiny:{name}"
        assert model["parameters"] == sum(tensor.numel() for tensor in tensors)
        assert model["weight_bytes"] == sum(tensor.nbytes for tensor in tensors)


def test_info_counts_what_the_caches_hold(two: list[str], folders: dict[str, Path], prompt: Any) -> None:
    model = kad.KadForCausalLM.from_models(str(folders["base"]), str(folders["aligned"]))
    cache = model(prompt(10), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    memory = json.loads(call("info", *two, "--json").stdout)["memory"]
    assert memory["cache_per_token"] * 10 == held
    assert memory["total"]["512"] == memory["weights"] + 512 * memory["cache_per_token"]
    # vLLM drafts with a second copy of the aligned model.
    weights = sum(weight.nbytes for weight in model.aligned.parameters())
    layers = cache.layers[-model.aligned.config.num_hidden_layers :]
    keys_and_values = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    assert memory["vllm_draft"] == {"weights": weights, "cache_per_token": keys_and_values // 10}


def test_info_for_people() -> None:
    shown = call("info", "tiny").stdout
    for word in (
        "tiny:big-base",
        "LlamaForCausalLM",
        "M parameters in bfloat16",
        "one for all models",
        "dual:threshold",
        "loads the aligned model once more",
    ):
        assert word in shown


def test_info_knows_padded_vocabularies(folders: dict[str, Path], tmp_path: Path) -> None:
    make_model(5, vocab=128).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    found = call("info", "--base", tmp_path, "--aligned", folders["aligned"])
    assert "one for all models, 96 tokens (padded: base 128 rows)" in found.stdout


def test_info_of_a_packed_pair(two: list[str], tmp_path: Path) -> None:
    call("pack", *two, "--deferral-temperature", "0.5", "--dtype", "float16", "-o", tmp_path / "pair")
    found = json.loads(call("info", tmp_path / "pair", "--json").stdout)
    assert found["deferral_temperature"] == 0.5
    assert found["models"]["base"]["dtype"] == "float16"
    assert "deferral temperature 0.5" in call("info", tmp_path / "pair").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "kad info needs a pair (a folder, a hub id or tiny), or --base and --aligned."),
        (["./nowhere"], "No pair at ./nowhere."),
        ([str(tiny.path("big-base"))], "is not a pair"),
        (["tiny", "--base", "tiny:big-base"], "not both"),
    ],
)
def test_wrong_info(arguments: list[str], message: str) -> None:
    assert message in call("info", *arguments, code=2).stderr


# ---------------------------------------------------------------------- rules


def test_rules_lists_the_registry() -> None:
    described = json.loads(call("rules", "--json").stdout)["rules"]
    assert [rule["name"] for rule in described] == list(registry())
    for rule in described:
        default = parse_rule(rule["name"])
        values = {parameter["name"]: parameter["default"] for parameter in rule["parameters"]}
        assert {"rule": rule["name"], **values} == default.to_dict()
        for parameter in rule["parameters"]:
            for end in ("min", "max"):
                if parameter[end] is not None:  # the ends of a range belong to it
                    parse_rule({"rule": rule["name"], parameter["name"]: parameter[end]})
    assert {rule["family"] for rule in described} == {"threshold", "cascade", "product"}


def test_the_table_of_rules_fits_a_narrow_terminal() -> None:
    shown = call("rules", COLUMNS="80").stdout
    assert all(len(line) <= 80 for line in shown.splitlines())
    for name, rule in registry().items():
        assert name in shown
        assert rule.source.split()[0] in shown
    assert "threshold=0.4  [0, 1]" in shown
    assert "base=1  [0, ∞)" in shown


def test_a_rule_registered_by_a_user_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule_module, "_REGISTRY", dict(rule_module._REGISTRY))

    @dataclass(frozen=True)
    class Mine(Dual):
        name: ClassVar[str] = "mine"
        summary: ClassVar[str] = "keep [what] I like"

    register(Mine)
    assert "keep [what] I like" in call("rules").stdout

"""`kad pack --card`: what the hub shows of a pair, and the loop that Transformers finds in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from typer.testing import CliRunner

import kad
from kad.cli.main import app
from kad.pair.sources import CARD_FILES

ROOT = Path(__file__).parents[1]
TINY = ["--base", "tiny:big-base", "--aligned", "tiny:small-aligned"]


def pack(*arguments: Any, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["pack", *map(str, arguments)], env={"COLUMNS": "200"})
    assert result.exit_code == code, f"{result.stderr}\n{result.exception!r}"
    return result


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "a pair"
    pack(*TINY, "--card", "-o", folder)
    return folder


@pytest.fixture
def local(folders: dict[str, Path], tmp_path: Path) -> list[Any]:
    for role in ("base", "aligned"):
        shutil.copytree(folders[role], tmp_path / role)
    (tmp_path / "base" / "README.md").write_text("---\nlicense: llama3.2\n---\n# A model\n")
    return ["--base", tmp_path / "base", "--aligned", tmp_path / "aligned", "-o", tmp_path / "pair"]


def test_the_card_is_one_that_the_hub_reads(tiny: Path) -> None:
    card = ModelCard.load(tiny / "README.md")
    assert card.data.to_dict() == {
        "library_name": "kad",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["kad", "test-time-alignment", "speculative-decoding", "custom_generate"],
    }
    for fact in (
        "no weights of its own",
        "`tiny:big-base`",
        "`dual:threshold=0.4`",
        "kad.load(",
        "vllm serve OWNER/a-pair",
    ):
        assert fact in card.text
    assert "It is the default of kad" in card.text
    assert "## Tuning" not in card.text
    assert "## Measured" not in card.text, "nothing was measured"
    assert str(tiny.parent) not in card.content


def test_the_card_says_what_is_known_and_no_more(local: list[Any], tmp_path: Path) -> None:
    assert json.loads(pack(*local, "--rule", "confidence_bet:margin=0.2", "--card", "--json").stdout)["files"][
        "README.md"
    ]
    card = ModelCard.load(tmp_path / "pair" / "README.md")
    assert "| base | `base` | – | llama3.2 |" in card.text
    assert "| aligned | `aligned` | – | its own card states none |" in card.text
    assert card.data.license is None
    assert "Whoever packed the pair gave it" in card.text
    assert "hammal2026rejection" in card.text
    assert str(tmp_path) not in card.content


@pytest.mark.parametrize(
    "readme", ["---\nlicense: [a\n---\n", "---\nlicense: '`|<b>'\n---\n", "no front matter", "\xff" * 9]
)
def test_what_a_models_card_says_is_data(local: list[Any], tmp_path: Path, readme: str) -> None:
    (tmp_path / "base" / "README.md").write_bytes(readme.encode("latin-1"))
    pack(*local, "--card")
    assert "| base | `base` | – | its own card states none |" in (tmp_path / "pair" / "README.md").read_text()


def test_models_of_the_hub_are_named_with_their_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    from kad.pair.card import card
    from kad.pair.config import KadConfig

    config = KadConfig(base={"model": "o/big", "revision": "v1"}, aligned={"model": "o/small"}, rule="nudging")
    text = card(config, "p", {"transformers"})
    assert "| base | `o/big` | `v1` | its own card states none |" in text
    assert "| aligned | `o/small` | the newest |" in text
    assert ModelCard(text).data.base_model == ["o/big", "o/small"]


def test_a_card_of_its_owner_is_never_written_over(local: list[Any], tmp_path: Path) -> None:
    pair = tmp_path / "pair"
    pack(*local)
    (pair / "README.md").write_text("mine")
    assert "is not a card that kad wrote" in pack(*local, "--card", code=2).stderr
    assert "is not a card that kad wrote" in pack("--card", "-o", pair, code=2).stderr
    pack(*local, "--rule", "nudging")  # without a card it is left alone
    assert (pair / "README.md").read_text() == "mine"
    (pair / "README.md").unlink()
    pack("--card", "-o", pair)
    (pair / CARD_FILES[1]).write_text("def generate(model): ...")
    assert "generate.py is not a card" in pack("--card", "-o", pair, code=2).stderr


def test_a_card_of_another_pair_does_not_stay(local: list[Any], tmp_path: Path) -> None:
    pair = tmp_path / "pair"
    pack(*local, "--card")
    pack("--card", "-o", pair)
    assert all((pair / name).is_file() for name in CARD_FILES)
    pack(*local, "--rule", "nudging")
    assert not (pair / "README.md").exists()
    assert not (pair / "custom_generate").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--probe", *TINY], "--probe belongs to --card"),
        (["--card", "--dtype", "float32"], "A card is about the pair as it is"),
        (["--card", "--rule", "nudging"], "A card is about the pair as it is"),
        (["--card", "--base", "tiny:big-base"], "kad pack needs --aligned."),
    ],
)
def test_wrong_wishes_for_a_card(tiny: Path, arguments: list[str], message: str) -> None:
    before = (tiny / "README.md").read_bytes()
    assert message in pack(*arguments, "-o", tiny, code=2).stderr
    assert (tiny / "README.md").read_bytes() == before
    assert "kad pack needs --base, --aligned" in pack("--card", "-o", tiny / "none", code=2).stderr


def test_the_figures_are_those_of_the_probe(tmp_path: Path) -> None:
    pack(*TINY, "--rule", "base_only", "--card", "--probe", "-o", tmp_path / "pair")
    text = (tmp_path / "pair" / "README.md").read_text()
    assert "deferred mass α, the share of the aligned model | 0.000 |" in text
    assert "means over" in text


TUNING = {
    "schema": "kad-tuning/1", "rule": "dual:threshold=0.4", "tasks": ["kad_tiny_development"], "objective": "speed",
    "floor": 0.5, "questions": 12, "metric": "strict", "reason": "the fastest", "chosen": 0.4,
    "candidates": [{"value": 0.4, "accuracy": 0.75, "throughput": 10.0, "chance": 0.6, "meets_floor": 0.9}],
}  # fmt: skip


def test_what_was_tuned_stands_in_the_card(tiny: Path, tmp_path: Path) -> None:
    pair = shutil.copytree(tiny, tmp_path / "pair")
    hostile = "x` | <img src=x onerror=alert(1)>\n\n# [a](javascript:b)"
    (pair / "tuning.json").write_text(json.dumps({**TUNING, "reason": hostile}))
    pack("--card", "-o", pair)
    text = (pair / "README.md").read_text()
    assert "| 0.4 | 75.0 % | 10.0 | 60 % | 90 % |" in text
    assert "`kad tune` chose it" in text
    assert r"x\` \| \<img src=x onerror=alert\(1\)\> \# \[a\]\(javascript:b\)" in text
    (pair / "tuning.json").write_text(json.dumps({**TUNING, "rule": "dual:threshold=0.5"}))
    pack("--card", "-o", pair)
    assert "## Tuning" not in (pair / "README.md").read_text(), "the pair has another rule now"
    for damaged in ("[", "[]", json.dumps({**TUNING, "candidates": [1]}), json.dumps({**TUNING, "questions": "many"})):
        (pair / "tuning.json").write_text(damaged)
        assert "tuning.json is damaged" in pack("--card", "-o", pair, code=2).stderr


def test_the_citation_is_that_of_the_project(tiny: Path) -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    text = " ".join((tiny / "README.md").read_text().split())
    paper = cited["preferred-citation"]
    for fact in (
        paper["url"],
        str(paper["year"]),
        f"{paper['start']}--{paper['end']}",
        *(a["family-names"] for a in paper["authors"]),
    ):
        assert fact in text
    assert paper["title"].lower() in text.replace("{", "").replace("}", "").lower()


def test_transformers_finds_the_loop_in_the_folder(tiny: Path) -> None:
    pair = kad.load(str(tiny))
    inputs = pair.tokenizer("Mia has 24 apples. She buys 13 more. How many?", return_tensors="pt")

    def sampled(loop: Any, **more: Any) -> Any:
        torch.manual_seed(5)
        options = {"max_new_tokens": 24, "do_sample": True, "num_draft_tokens": 3, "return_dict_in_generate": True}
        return pair.generate(**inputs, **options, custom_generate=loop, **more)

    own, found = sampled(kad.speculative), sampled(str(tiny), trust_remote_code=True)
    assert found.statistics.drafted > 0
    assert torch.equal(own.sequences, found.sequences)
    with pytest.raises(ValueError, match="trust_remote_code"):
        sampled(str(tiny), trust_remote_code=False)


_AS_A_REPOSITORY = """
import kad
pair = kad.load("owner/a-pair")
inputs = pair.tokenizer("Mia has 24 apples.", return_tensors="pt")
plain = pair.generate(**inputs, max_new_tokens=12)
found = pair.generate(**inputs, max_new_tokens=12, custom_generate="owner/a-pair", trust_remote_code=True)
print(plain.tolist() == found.tolist(), found.shape[1] - inputs.input_ids.shape[1])
"""


@pytest.mark.slow
def test_the_folder_works_as_a_repository_of_the_hub(tiny: Path, tmp_path: Path) -> None:
    """As the hub's client keeps it in its cache. Another process, as the place of the cache is read at the start."""
    repository = tmp_path / "hub" / "models--owner--a-pair"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(tiny, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    env.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", _AS_A_REPOSITORY], env=env, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.stdout.strip() == "True 12", done.stderr

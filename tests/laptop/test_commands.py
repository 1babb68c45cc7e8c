"""The command line with files of the engines: a pair is packed, shown and asked; wrong files are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from conftest import ALIGNED, BASE
from kad.cli.main import app

QUESTION = "Ann has 5 pens. She buys 8 more. How many pens does she have now?"
ANSWER = "First, 5 + 8 = 13. The answer is \\boxed{13}."
Files = Callable[[str, str], Path]


def kad(*arguments: Any) -> Any:
    """What a command gives."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, f"{result.stderr}\n{result.exception!r}"
    return result


def refused(*arguments: Any) -> str:
    """What a command writes that ends with exit code 2."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2, f"{result.stderr}\n{result.exception!r}"
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) <= 2
    return str(result.stderr)


@pytest.mark.parametrize(("base", "aligned", "engine"), [("Q8_0", "f32", "llama_cpp"), ("mlx-4-bits", "mlx", "mlx")])
def test_a_pair_of_files_is_packed_shown_and_asked(
    files: Files, tmp_path: Path, base: str, aligned: str, engine: str
) -> None:
    names = ["--base", files(BASE, base), "--aligned", files(ALIGNED, aligned)]
    pair = tmp_path / "pair"
    kad("pack", *names, "-o", pair)
    assert Path(json.loads((pair / "config.json").read_text())["base"]["model"]).name == files(BASE, base).name
    shown = json.loads(kad("info", pair, "--json").stdout)
    assert {model["engine"] for model in shown["models"].values()} == {engine}
    assert shown["models"]["base"]["parameters"] == 1_918_656
    assert shown["models"]["base"]["weight_bytes"] < 2_200_000
    assert shown["vocabulary"]["match"]
    for places in (names, ["--pair", pair]):
        assert kad("generate", QUESTION, *places, "--temperature", "0").stdout.strip() == ANSWER


def test_info_counts_the_memory_as_llama_cpp_does(files: Files) -> None:
    from kad.engines.llama_cpp.header import read_header
    from kad.engines.llama_cpp.model import LlamaCppModel

    for kind in ("f32", "Q8_0"):
        header, facts = read_header(files(BASE, kind)), LlamaCppModel(files(BASE, kind)).facts
        assert (header.parameters, header.weight_bytes) == (facts.parameters, facts.weight_bytes)


def nonsense(file: Path) -> Path:
    """A GGUF file of an architecture that nobody knows."""
    from gguf import GGUFWriter

    writer = GGUFWriter(file, "nonsense")
    writer.add_tensor("x", np.zeros((32, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_wrong_files_are_refused(files: Files, tmp_path: Path) -> None:
    good, cut, text = files(BASE, "f32"), tmp_path / "cut.gguf", tmp_path / "text.gguf"
    stump = tmp_path / "stump.gguf"
    cut.write_bytes(good.read_bytes()[:300_000])
    stump.write_bytes(good.read_bytes()[:100])
    text.write_text("no weights")
    for file, words in (
        (cut, "is not within the file bounds"),
        (stump, "is damaged: it ends before its header does. Get the file again, or take another."),
        (text, "is no GGUF file: it does not begin with GGUF."),
        (nonsense(tmp_path / "odd.gguf"), "unknown model architecture: 'nonsense'"),
        (tmp_path / "none.gguf", "No GGUF file at"),
    ):
        assert words in refused("generate", "Hi", "--base", file, "--aligned", files(ALIGNED, "f32"))
    empty = tmp_path / "mlx"
    empty.mkdir()
    (empty / "config.json").write_text(
        json.dumps({"model_type": "llama", "quantization": {"group_size": 32, "bits": 4}})
    )
    assert "MLX cannot load" in refused("generate", "Hi", "--base", empty, "--aligned", files(ALIGNED, "f32"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cut.gguf",
        "mlx",
        "odd.gguf",
        "stump.gguf",
        "text.gguf",
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--engine-option", "context=4"], "or raise the option `context` of its engine."),
        (["--engine-option", "context=many"], "The option context of llama.cpp must be a whole number, but is 'many'."),
        (["--engine-option", "contxt=4"], "Unknown option 'contxt' of llama.cpp. Allowed: context, gpu_layers,"),
        (["--engine-option", "cache_type=q3"], "Choose from: f32, f16, q4_0"),
        (["--engine", "mlx"], "is a GGUF file"),
    ],
)
def test_wrong_options_are_refused(files: Files, options: list[str], words: str) -> None:
    names = ["--base", files(BASE, "f32"), "--aligned", files(ALIGNED, "f32")]
    assert words in refused("generate", "Hi", *names, *options)

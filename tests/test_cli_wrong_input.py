"""What `kad generate` refuses: exit code 2, and a line or two that say what was got and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli_runs import generate
from conftest import make_model, make_tokenizer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Hi", "--rule", "dul"], "Unknown rule 'dul'. Choose from: dual, primal,"),
        (["Hi", "--rule", "dual:threshold=2"], "threshold must be a number from 0 to 1, but is 2.0"),
        (["Hi", "--rule", "dual:treshold=0.3"], "dual has no parameter 'treshold'. It takes: threshold."),
        (["Hi", "--pair", "./nope"], "No pair at ./nope. Give a folder written by `kad pack`, a hub id, or tiny."),
        (["Hi", "--base", "tiny:big-base"], "--base needs --aligned beside it"),
        (["Hi", "--aligned", "tiny:small-aligned"], "--aligned needs --base beside it"),
        (["Hi", "--base", "tiny:big", "--aligned", "tiny:small-aligned"], "Unknown model 'tiny:big'. Choose from:"),
        (["Hi", "--pair", "tiny", "--base", "x"], "Give --pair or --base, not both."),
        (["Hi", "--temperature", "-1"], "--temperature must be 0 or in [0.01, 1000], but is -1."),
        (["Hi", "--temperature", "1e-6"], "--temperature must be 0 or in [0.01, 1000], but is 1e-06."),
        (["Hi", "--temperature", "nan"], "--temperature must be 0 or in [0.01, 1000], but is nan."),
        (["Hi", "--temperature", "0", "--top-p", "0.5"], "--top-p would do nothing"),
        (["Hi", "--top-p", "1.5"], "--top-p must be in (0, 1], but is 1.5."),
        (["Hi", "--min-p", "-0.5"], "--min-p must be in [0, 1], but is -0.5."),
        (["Hi", "--repetition-penalty", "0"], "--repetition-penalty must be > 0, but is 0."),
        (["Hi", "--stop", ""], "--stop needs some text"),
        (["Hi", "--draft-tokens", "many"], "--draft-tokens must be a number from 0 to 64 or auto, but is 'many'."),
        (["Hi", "--draft-tokens", "-3"], "--draft-tokens must be a number from 0 to 64 or auto, but is '-3'."),
        (["Hi", "--deferral-temperature", "0"], "--deferral-temperature must be in [0.01, 1000], but is 0."),
        (["Hi", "--seed", "1" * 23], "--seed must be in [0, 9223372036854775807], but is 11111111111111111111111."),
        (["Hi", "--seed", "1" * 400], "--seed must be in [0, 9223372036854775807], but is 111"),
        (["Hi", "--dtype", "int8"], "Unknown --dtype 'int8'. Choose from: auto, float32, bfloat16, float16."),
        (["Hi", "--device", "tpu"], "Unknown --device 'tpu'. Choose from: cpu, cuda, cuda:1, mps, xpu, auto."),
        (["Hi", "--device", "cuda:77"], "Device 'cuda:77' cannot be used here:"),
        (["Hi", "--file", "x.txt"], "as an argument or with --file, not both"),
        (["--file", "no-such-file.txt"], "Cannot read no-such-file.txt: No such file or directory."),
        (["Hi", "--raw", "--system", "x"], "--raw uses no chat template"),
        (["Hi", "--json", "--color"], "Give --json or --color, not both"),
        ([""], "The prompt is empty."),
        (["  \n "], "The prompt is empty."),
        (["-"], "The prompt is empty."),
        ([], "The prompt is empty."),
    ],
)
def test_wrong_input(arguments: list[str], message: str) -> None:
    result = generate(*arguments, code=2)
    assert message in result.stderr
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) <= 2


def test_a_model_is_not_a_pair(folders: dict[str, Path]) -> None:
    assert "is not a pair" in generate("Hi", "--pair", folders["base"], code=2).stderr


def test_a_rule_that_lacks_its_model(folders: dict[str, Path]) -> None:
    two = ["--base", folders["base"], "--aligned", folders["aligned"], "--rule", "implicit_reward"]
    assert "needs the reference model. Give one with --reference." in generate("Hi", *two, code=2).stderr


def test_binary_input_is_refused() -> None:
    assert "standard input is not UTF-8 text (byte 1)" in generate("-", stdin=b"a\xff\xfe", code=2).stderr


def test_a_prompt_longer_than_the_context(folders: dict[str, Path]) -> None:
    two = ["--base", folders["base"], "--aligned", folders["aligned"]]
    result = generate("x" * 600, *two, "--raw", code=2)
    assert "The prompt has 600 tokens; the models' context holds 512" in result.stderr


def test_different_vocabularies(folders: dict[str, Path], tmp_path: Path) -> None:
    make_model(5, vocab=90).save_pretrained(tmp_path)
    tokenizer = make_tokenizer(90)
    tokenizer.save_pretrained(tmp_path)
    result = generate("Hi", "--base", folders["base"], "--aligned", tmp_path, code=2)
    assert "different vocabularies" in result.stderr
    assert "id 89:" in result.stderr


def test_no_chat_template(folders: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    make_model(1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    two = ["--base", folders["base"], "--aligned", tmp_path]
    assert "has no chat template. Use --raw" in generate("Hi", *two, code=2).stderr
    assert generate("Hi", *two, "--raw", "-n", "2").exit_code == 0

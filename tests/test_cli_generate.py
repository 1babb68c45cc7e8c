"""`kad generate`, end to end on real weights: the tiny family, and tiny random models from folders."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig
from typer.testing import CliRunner

import kad
from conftest import make_model, make_tokenizer
from kad import tiny
from kad.cli import origins
from kad.cli.main import app
from kad.cli.prompts import Detokenizer, decode

QUESTION = "Mia has 24 apples. She buys 13 more. Then she loses 9 of them. How many apples does she have now?"
Result = Any  # Click's, of which Typer may carry its own copy
Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On models this small a second thread only waits for the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """run("generate", ...) in this process; fails the test on an unexpected exit code."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)

    def call(*arguments: Any, code: int = 0, stdin: str | bytes | None = None, **env: str) -> Result:
        result = CliRunner().invoke(app, ["generate", *map(str, arguments)], input=stdin, env=env)
        assert result.exit_code == code, f"{result.stderr}\n{result.exception!r}"
        return result

    return call


@pytest.fixture
def models(folders: dict[str, Path]) -> list[str]:
    """The options that name the random models, under a rule that bites, greedy, short."""
    named = [f"--{role}={path}" for role, path in folders.items()]
    return [*named, "--rule", "dual:threshold=0.2", "--max-new-tokens", "12"]


def as_json(result: Result) -> dict[str, Any]:
    """Standard output, which must be one JSON object and nothing else."""
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def expected(prompt: str, **options: Any) -> list[int]:
    """The new tokens that Transformers' own generate gives on the embedded pair."""
    model, tokenizer = tiny.pair(), make_tiny_tokenizer()
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    settings = {"max_new_tokens": 200, "do_sample": False} | options
    return model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.shape[-1] :].tolist()


def make_tiny_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny.path("small-aligned"))


# ---------------------------------------------------------------------- the text


def test_the_answer_is_what_transformers_generates(run: Run) -> None:
    tokens = expected(QUESTION)
    text = make_tiny_tokenizer().decode(tokens, skip_special_tokens=True)
    assert run(QUESTION, "--draft-tokens", "0").stdout == text + "\n"
    assert run(QUESTION, "--no-stream").stdout == text + "\n"
    assert as_json(run(QUESTION, "--json"))["token_ids"] == tokens


@pytest.mark.parametrize("draft_tokens", ["0", "1", "5", "auto"])
def test_speculation_does_not_change_a_greedy_text(run: Run, draft_tokens: str) -> None:
    found = as_json(run(QUESTION, "--dtype", "float32", "--draft-tokens", draft_tokens, "--json"))
    plain = as_json(run(QUESTION, "--dtype", "float32", "--draft-tokens", "0", "--json"))
    assert found["token_ids"] == plain["token_ids"]
    assert found["speculation"]["used"] is (draft_tokens != "0")
    if draft_tokens == "5":
        assert 0 < found["accepted"] <= found["drafted"]
        assert found["speculation"]["reason"] == "as asked"
    if draft_tokens == "0":
        assert "drafted" not in found


def test_the_prompt_may_come_from_anywhere(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "question.txt"
    file.write_text(QUESTION + "\n", encoding="utf-8")
    answers = [
        run(QUESTION),
        run("--file", file),
        run(stdin=QUESTION + "\n"),
        run("-", stdin=QUESTION.encode() + b"\r\n"),
    ]
    assert len({answer.stdout for answer in answers}) == 1


def test_raw_takes_the_prompt_as_it_stands(run: Run) -> None:
    raw, chat = (as_json(run("2 + 3", *more, "--json", "-n", "3")) for more in (["--raw"], []))
    assert raw["prompt_tokens"] == len(make_tiny_tokenizer()("2 + 3").input_ids)
    assert chat["prompt_tokens"] > raw["prompt_tokens"]


def test_the_system_message_goes_through_the_template(run: Run, models: list[str]) -> None:
    plain, system = (as_json(run("Hi", *models, *more, "--json")) for more in ([], ["--system", "Be kind"]))
    assert system["prompt_tokens"] == plain["prompt_tokens"] + len("[system]Be kind\n")


def test_rules_change_the_text(run: Run) -> None:
    texts = {rule: run(QUESTION, "--rule", rule).stdout for rule in ("never", "dual:threshold=0.4")}
    assert r"\boxed{28}" in texts["dual:threshold=0.4"]
    assert r"\boxed" not in texts["never"]  # the base model alone does not know the form


# ---------------------------------------------------------------------- drawing


def test_a_seed_repeats_a_sampled_text_and_json_names_the_seed(run: Run, models: list[str]) -> None:
    sampled = as_json(run("Hi", *models, "-t", "1.3", "--json"))
    again = as_json(run("Hi", *models, "-t", "1.3", "--json", "--seed", sampled["seed"]))
    other = as_json(run("Hi", *models, "-t", "1.3", "--json", "--seed", sampled["seed"] + 1))
    assert again["token_ids"] == sampled["token_ids"] != other["token_ids"]
    assert as_json(run("Hi", *models, "--json"))["seed"] is None  # greedy


def test_the_aligned_models_settings_hold_unless_overruled(
    run: Run, models: list[str], folders: dict[str, Path]
) -> None:
    settings = folders["aligned"] / "generation_config.json"
    before = settings.read_text()
    GenerationConfig(do_sample=True, temperature=1.5, top_k=7, eos_token_id=1).save_pretrained(folders["aligned"])
    try:
        assert as_json(run("Hi", *models, "--json"))["seed"] is not None
        greedy = as_json(run("Hi", *models, "--json", "--temperature", "0"))
    finally:
        settings.write_text(before)
    assert greedy["seed"] is None
    assert greedy["token_ids"] == as_json(run("Hi", *models, "--json"))["token_ids"]
    assert greedy["token_ids"] == as_json(run("Hi", *models, "--json", "--top-k", "1"))["token_ids"]


def test_stop_strings_end_the_text(run: Run) -> None:
    found = as_json(run(QUESTION, "--stop", "The answer", "--json"))
    assert found["text"].endswith("The answer")
    assert found["finish_reason"] == "stop_string"


def test_a_text_that_was_cut_says_so(run: Run, models: list[str]) -> None:
    short = run("Hi", *models, "--max-new-tokens", "3")
    assert "stopped after 3 tokens; --max-new-tokens allows more" in short.stderr
    full = as_json(run("x" * 505, *models, "--raw", "--max-new-tokens", "100", "--json"))
    assert full["prompt_tokens"] + len(full["token_ids"]) <= 512
    assert full["finish_reason"] in ("context", "stop")


# ---------------------------------------------------------------------- JSON, origins, statistics


def test_json_shares_and_alpha_follow_the_definition(run: Run, models: list[str], models_: dict[str, Any]) -> None:
    found = as_json(run("What is this?", *models, "--json", "--max-new-tokens", "70", "-t", "1", "--seed", "3"))
    tokenizer = make_tokenizer()
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is this?"}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    tokens = found["token_ids"]
    ids = torch.tensor([prompt + tokens])
    with torch.no_grad():
        p, q = (models_[role](ids).logits[0, len(prompt) - 1 : -1].double().softmax(-1) for role in ("base", "aligned"))
    kept = p * (p >= 0.2)
    alpha = 1 - kept.sum(-1)
    at = torch.tensor(tokens).unsqueeze(-1)
    pi_kept, pi_deferred = (x.gather(-1, at).squeeze(-1) for x in (kept, alpha.unsqueeze(-1) * q))
    share = pi_kept / (pi_kept + pi_deferred)
    assert len(tokens) > 33, "the text must be longer than one chunk of the measurement"
    torch.testing.assert_close(torch.tensor(found["alpha"]).double(), alpha, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(found["origin_shares"]["base"]).double(), share, atol=1e-4, rtol=0)
    pairs = zip(found["origin_shares"]["base"], found["origin_shares"]["aligned"], strict=True)
    assert all(base + aligned == pytest.approx(1) for base, aligned in pairs)
    assert found["text"] == tokenizer.decode(tokens, skip_special_tokens=True)
    assert len(found["tokens"]) == len(tokens)
    assert found["tokens_per_second"] > 0
    assert set(found["timings"]) == {"load", "first_token", "generate"}


def test_deferral_temperature_reaches_the_shares(run: Run, models: list[str]) -> None:
    cold, warm = (as_json(run("Hi", *models, "--json", "--deferral-temperature", t)) for t in ("1e-5", "1"))
    assert max(cold["alpha"]) < 1e-3  # one-hot p: everything is kept
    assert max(warm["alpha"]) > 0.1


def test_product_rules_have_no_origins(run: Run, models: list[str]) -> None:
    found = as_json(run("Hi", *models, "--rule", "implicit_reward", "--json"))
    assert found["origin_shares"] is None
    assert found["alpha"] is None
    refused = run("Hi", *models, "--rule", "implicit_reward", "--color", code=2)
    assert "Rule implicit_reward multiplies the models" in refused.stderr


def test_color_shows_the_same_text_in_the_colours_of_its_origins(run: Run) -> None:
    plain = run(QUESTION).stdout
    colored = run(QUESTION, "--color", FORCE_COLOR="1", TERM="xterm-256color", COLORTERM="truecolor").stdout
    assert "\x1b[38;2;" in colored
    assert without_escapes(colored) == plain
    no_color = run(QUESTION, "--color", NO_COLOR="1", FORCE_COLOR="1", TERM="xterm-256color").stdout
    assert "38;2" not in no_color
    assert "\x1b[4m" in no_color  # the aligned model's tokens are underlined
    piped = run(QUESTION, "--color")
    assert piped.stdout == plain
    assert "base model" in piped.stderr
    assert "aligned model" in piped.stderr


def without_escapes(text: str) -> str:
    import re

    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_the_two_ends_of_the_colours(run: Run) -> None:
    assert as_json(run(QUESTION, "--rule", "never", "--json", "-n", "5"))["origin_shares"]["base"] == [1.0] * 5
    assert as_json(run(QUESTION, "--rule", "always", "--json", "-n", "5"))["origin_shares"]["base"] == [0.0] * 5
    assert origins.color(1.0) == "#2f86d6"
    assert origins.color(0.0) == "#c96a00"
    assert "underline" in origins.style(0.49)
    assert "underline" not in origins.style(0.51)


def test_stats_stand_on_standard_error(run: Run) -> None:
    plain, shown = run(QUESTION, "--draft-tokens", "4"), run(QUESTION, "--draft-tokens", "4", "--stats", COLUMNS="200")
    assert shown.stdout == plain.stdout
    for word in ("dual:threshold=0.4", "tokens/s", "draft tokens 4: as asked", "accepted (", "times plain decoding"):
        assert word in shown.stderr
    off = run(QUESTION, "--draft-tokens", "0", "--stats")
    assert "off: as asked" in off.stderr
    found = as_json(run(QUESTION, "--draft-tokens", "4", "--stats", "--json"))
    assert found["speed_up"] > 0
    assert found["plain_tokens_per_second"] > 0


def test_drafting_is_the_default_only_where_the_aligned_model_is_small(run: Run) -> None:
    small = as_json(run(QUESTION, "--json", "-n", "4"))
    assert small["speculation"]["used"]
    assert "of the base model's parameters" in small["speculation"]["reason"]
    same = ["--base", "tiny:small-base", "--aligned", "tiny:small-aligned"]
    large = as_json(run(QUESTION, *same, "--json", "-n", "4"))
    assert not large["speculation"]["used"]
    assert "too large to draft: 100%" in large["speculation"]["reason"]


# ---------------------------------------------------------------------- wrong input


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
        (["Hi", "--temperature", "-1"], "--temperature must be >= 0, but is -1."),
        (["Hi", "--temperature", "nan"], "--temperature must be >= 0, but is nan."),
        (["Hi", "--temperature", "0", "--top-p", "0.5"], "--top-p would do nothing"),
        (["Hi", "--top-p", "1.5"], "--top-p must be in (0, 1], but is 1.5."),
        (["Hi", "--min-p", "-0.5"], "--min-p must be in [0, 1], but is -0.5."),
        (["Hi", "--repetition-penalty", "0"], "--repetition-penalty must be > 0, but is 0."),
        (["Hi", "--stop", ""], "--stop needs some text"),
        (["Hi", "--draft-tokens", "many"], "--draft-tokens must be a number from 0 to 64 or auto, but is 'many'."),
        (["Hi", "--draft-tokens", "-3"], "--draft-tokens must be a number from 0 to 64 or auto, but is '-3'."),
        (["Hi", "--deferral-temperature", "0"], "--deferral-temperature must be a positive number, but is 0.0."),
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
def test_wrong_input(run: Run, arguments: list[str], message: str) -> None:
    result = run(*arguments, code=2)
    assert message in result.stderr
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) <= 2


def test_a_model_is_not_a_pair(run: Run, folders: dict[str, Path]) -> None:
    assert "is not a pair" in run("Hi", "--pair", folders["base"], code=2).stderr


def test_a_rule_that_lacks_its_model(run: Run, folders: dict[str, Path]) -> None:
    two = ["--base", folders["base"], "--aligned", folders["aligned"], "--rule", "implicit_reward"]
    assert "needs the reference model. Give one with --reference." in run("Hi", *two, code=2).stderr


def test_binary_input_is_refused(run: Run) -> None:
    assert "standard input is not UTF-8 text (byte 1)" in run("-", stdin=b"a\xff\xfe", code=2).stderr


def test_a_prompt_longer_than_the_context(run: Run, models: list[str]) -> None:
    result = run("x" * 600, *models, "--raw", code=2)
    assert "The prompt has 600 tokens; the models' context holds 512" in result.stderr


def test_different_vocabularies(run: Run, folders: dict[str, Path], tmp_path: Path) -> None:
    make_model(5, vocab=90).save_pretrained(tmp_path)
    tokenizer = make_tokenizer(90)
    tokenizer.save_pretrained(tmp_path)
    result = run("Hi", "--base", folders["base"], "--aligned", tmp_path, code=2)
    assert "different vocabularies" in result.stderr
    assert "id 89:" in result.stderr


def test_no_chat_template(run: Run, folders: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    make_model(1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    two = ["--base", folders["base"], "--aligned", tmp_path]
    assert "has no chat template. Use --raw" in run("Hi", *two, code=2).stderr
    assert run("Hi", *two, "--raw", "-n", "2").exit_code == 0


# ---------------------------------------------------------------------- pieces


@pytest.mark.parametrize(
    "text", ["24 + 13 = 37.\n", "naïve café", "漢字かな", "a 👩‍👩‍👧 b", "  two  spaces ", "é" * 40]
)
def test_pieces_add_up_to_the_text_and_hold_whole_characters(text: str) -> None:
    tokenizer = make_tiny_tokenizer()
    tokens = tokenizer(text).input_ids
    pieces = Detokenizer(tokenizer)
    shown = [pieces.push(token) for token in tokens] + [pieces.finish()]
    assert "".join(shown) == decode(tokenizer, tokens) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in shown)


def test_an_incomplete_character_comes_at_the_end() -> None:
    tokenizer = make_tiny_tokenizer()
    tokens = tokenizer("漢").input_ids[:-1]
    pieces = Detokenizer(tokenizer)
    assert "".join(pieces.push(token) for token in tokens) == ""
    assert pieces.finish() == "\N{REPLACEMENT CHARACTER}"


def test_ctrl_c_ends_cleanly(folders: dict[str, Path]) -> None:
    models = [f"--{role}={path}" for role, path in folders.items()]
    code = "from kad.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "generate", "Hi", *models, "-n", "480", "-t", "1", "--draft-tokens", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    process.stdout.read(1)  # the text has begun
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 130, errors.decode()
    assert b"Traceback" not in errors


def test_the_public_package_and_the_command_agree(run: Run) -> None:
    """`--base/--aligned` composes the same model as `from_models`."""
    model = kad.KadForCausalLM.from_models("tiny:big-base", "tiny:small-aligned", rule="primal:budget=0.9")
    ids = make_tiny_tokenizer()("First, 24 + 13 =", return_tensors="pt").input_ids
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    two = ["--base", "tiny:big-base", "--aligned", "tiny:small-aligned", "--rule", "primal:budget=0.9"]
    found = as_json(run("First, 24 + 13 =", "--raw", *two, "--json", "-n", "4", "--draft-tokens", "0"))
    assert found["token_ids"] == tokens[0, ids.shape[-1] :].tolist()

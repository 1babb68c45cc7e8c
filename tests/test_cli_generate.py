"""`kad generate`, end to end on real weights: the tiny family, and tiny random models from folders."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

import kad
from cli_runs import as_json, generate, make_tiny_tokenizer
from conftest import make_tokenizer
from kad import palette, tiny
from kad.tracing.page import blank_page

QUESTION = "Mia has 24 apples. She buys 13 more. Then she loses 9 of them. How many apples does she have now?"


@pytest.fixture
def named(folders: dict[str, Path]) -> list[str]:
    """The options that name the random models."""
    return [f"--{role}={path}" for role, path in folders.items()]


@pytest.fixture
def models(named: list[str]) -> list[str]:
    """The random models under a rule that bites, greedy, short."""
    return [*named, "--rule", "dual:threshold=0.2", "--max-new-tokens", "12"]


def expected(prompt: str, **options: Any) -> list[int]:
    """The new tokens that Transformers' own generate gives on the embedded pair."""
    model, tokenizer = tiny.pair(), make_tiny_tokenizer()
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    settings = {"max_new_tokens": 200, "do_sample": False} | options
    return model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.shape[-1] :].tolist()


# ---------------------------------------------------------------------- the text


@pytest.mark.core
def test_the_answer_is_what_transformers_generates() -> None:
    tokens = expected(QUESTION)
    text = make_tiny_tokenizer().decode(tokens, skip_special_tokens=True)
    assert generate(QUESTION, "--draft-tokens", "0").stdout == text + "\n"
    assert generate(QUESTION, "--no-stream").stdout == text + "\n"
    assert as_json(generate(QUESTION, "--json"))["token_ids"] == tokens


@pytest.mark.core
@pytest.mark.parametrize("draft_tokens", ["0", "1", "5", "auto"])
def test_speculation_does_not_change_a_greedy_text(draft_tokens: str) -> None:
    found = as_json(generate(QUESTION, "--dtype", "float32", "--draft-tokens", draft_tokens, "--json"))
    plain = as_json(generate(QUESTION, "--dtype", "float32", "--draft-tokens", "0", "--json"))
    assert found["token_ids"] == plain["token_ids"]
    assert found["speculation"]["used"] is (draft_tokens != "0")
    if draft_tokens == "5":
        assert 0 < found["accepted"] <= found["drafted"]
        assert found["speculation"]["reason"] == "as asked"
    if draft_tokens == "0":
        assert "drafted" not in found


def test_the_prompt_may_come_from_anywhere(tmp_path: Path) -> None:
    file = tmp_path / "question.txt"
    file.write_text(QUESTION + "\n", encoding="utf-8")
    answers = [
        generate(QUESTION),
        generate("--file", file),
        generate(stdin=QUESTION + "\n"),
        generate("-", stdin=QUESTION.encode() + b"\r\n"),
    ]
    assert len({answer.stdout for answer in answers}) == 1


def test_raw_takes_the_prompt_as_it_stands() -> None:
    raw, chat = (as_json(generate("2 + 3", *more, "--json", "-n", "3")) for more in (["--raw"], []))
    assert raw["prompt_tokens"] == len(make_tiny_tokenizer()("2 + 3").input_ids)
    assert chat["prompt_tokens"] > raw["prompt_tokens"]


def test_the_system_message_goes_through_the_template(models: list[str]) -> None:
    plain, system = (as_json(generate("Hi", *models, *more, "--json")) for more in ([], ["--system", "Be kind"]))
    assert system["prompt_tokens"] == plain["prompt_tokens"] + len("[system]Be kind\n")


def test_rules_change_the_text() -> None:
    texts = {rule: generate(QUESTION, "--rule", rule).stdout for rule in ("base_only", "dual:threshold=0.4")}
    assert r"\boxed{28}" in texts["dual:threshold=0.4"]
    assert r"\boxed" not in texts["base_only"]  # the base model alone does not know the form


# ---------------------------------------------------------------------- drawing


@pytest.mark.core
def test_a_seed_repeats_a_sampled_text_and_json_names_the_seed(models: list[str]) -> None:
    sampled = as_json(generate("Hi", *models, "-t", "1.3", "--json"))
    again = as_json(generate("Hi", *models, "-t", "1.3", "--json", "--seed", sampled["seed"]))
    assert again["token_ids"] == sampled["token_ids"]
    assert sampled["speculation"]["draft_tokens"] == 4  # "auto" follows the clock
    # One other seed may by chance end the text at the same token; five do not.
    seeds = range(sampled["seed"] + 1, sampled["seed"] + 6)
    others = [as_json(generate("Hi", *models, "-t", "1.3", "--json", "--seed", seed)) for seed in seeds]
    assert any(other["token_ids"] != sampled["token_ids"] for other in others)
    assert as_json(generate("Hi", *models, "--json"))["seed"] is None  # greedy


def test_the_aligned_models_settings_hold_unless_overruled(models: list[str], folders: dict[str, Path]) -> None:
    settings = folders["aligned"] / "generation_config.json"
    before = settings.read_text()
    GenerationConfig(do_sample=True, temperature=1.5, top_k=7, eos_token_id=1).save_pretrained(folders["aligned"])
    try:
        assert as_json(generate("Hi", *models, "--json"))["seed"] is not None
        greedy = as_json(generate("Hi", *models, "--json", "--temperature", "0"))
    finally:
        settings.write_text(before)
    assert greedy["seed"] is None
    assert greedy["token_ids"] == as_json(generate("Hi", *models, "--json"))["token_ids"]
    assert greedy["token_ids"] == as_json(generate("Hi", *models, "--json", "--top-k", "1"))["token_ids"]


@pytest.mark.core
def test_stop_strings_end_the_text() -> None:
    found = as_json(generate(QUESTION, "--stop", "The answer", "--json"))
    assert found["text"].endswith("The answer")
    assert found["finish_reason"] == "stop_string"


def test_a_text_that_was_cut_says_so(named: list[str]) -> None:
    models = [*named, "--rule", "dual:threshold=0.2"]
    short = generate("Hi", *models, "--max-new-tokens", "3")
    assert "stopped after 3 tokens; --max-new-tokens allows more" in short.stderr
    full = as_json(generate("x" * 505, *models, "--raw", "--max-new-tokens", "100", "--json"))
    assert full["prompt_tokens"] + len(full["token_ids"]) <= 512
    assert full["finish_reason"] in ("context", "stop")


# ---------------------------------------------------------------------- JSON, origins, statistics


@pytest.mark.core
def test_json_shares_and_alpha_follow_the_definition(named: list[str], models_: dict[str, Any]) -> None:
    options = ("--rule", "dual:threshold=0.2", "--json", "--max-new-tokens", "70", "-t", "1", "--seed", "3")
    found = as_json(generate("What is this?", *named, *options))
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
    torch.testing.assert_close(torch.tensor(found["deferred_mass"]).double(), alpha, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(found["base_share"]).double(), share, atol=1e-4, rtol=0)
    pairs = zip(found["base_share"], found["aligned_share"], strict=True)
    assert all(base + aligned == pytest.approx(1) for base, aligned in pairs)
    assert found["text"] == tokenizer.decode(tokens, skip_special_tokens=True)
    assert len(found["tokens"]) == len(tokens)
    assert found["tokens_per_second"] > 0
    assert set(found["timings"]) == {"load", "first_token", "generate"}


def test_deferral_temperature_reaches_the_shares(models: list[str]) -> None:
    cold, warm = (as_json(generate("Hi", *models, "--json", "--deferral-temperature", t)) for t in ("0.01", "1"))
    assert median(cold["deferred_mass"]) < 1e-3  # nearly one-hot p: nearly everything is kept
    assert median(warm["deferred_mass"]) > 0.01


def test_product_rules_have_no_origins(named: list[str]) -> None:
    models = [*named, "--max-new-tokens", "12"]
    found = as_json(generate("Hi", *models, "--rule", "implicit_reward", "--json"))
    assert found["base_share"] is None
    assert found["deferred_mass"] is None
    refused = generate("Hi", *models, "--rule", "implicit_reward", "--color", code=2)
    assert "Rule implicit_reward multiplies the models" in refused.stderr


def test_color_shows_the_same_text_in_the_colors_of_its_origins() -> None:
    plain = generate(QUESTION).stdout
    colored = generate(QUESTION, "--color", FORCE_COLOR="1", TERM="xterm-256color", COLORTERM="truecolor").stdout
    assert "\x1b[38;2;" in colored
    assert without_escapes(colored) == plain
    no_color = generate(QUESTION, "--color", NO_COLOR="1", FORCE_COLOR="1", TERM="xterm-256color").stdout
    assert "38;2" not in no_color
    assert "\x1b[4m" in no_color  # the aligned model's tokens are underlined
    piped = generate(QUESTION, "--color")
    assert piped.stdout == plain
    assert "base model" in piped.stderr
    assert "aligned model" in piped.stderr


def without_escapes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_the_colors_stand_in_one_place() -> None:
    """Of what the package contains, only the palette names a color by its numbers."""
    sources = [file for kind in ("py", "css", "js", "html") for file in Path(kad.__file__).parent.rglob(f"*.{kind}")]
    colors = re.compile(r"#[0-9a-fA-F]{6}\b")
    assert [file.name for file in sources if colors.search(file.read_text(encoding="utf-8"))] == ["palette.py"]
    assert not re.search("kad:(light|dark)", blank_page("kad trace"))


def test_the_two_ends_of_the_colors() -> None:
    for rule, share in (("base_only", 1.0), ("aligned_only", 0.0)):
        assert as_json(generate(QUESTION, "--rule", rule, "--json", "-n", "5"))["base_share"] == [share] * 5
    assert palette.color(1.0) == "#2f86d6"
    assert palette.color(0.0) == "#c96a00"
    assert "underline" in palette.style(0.49)
    assert "underline" not in palette.style(0.51)


def test_stats_stand_on_standard_error() -> None:
    plain, shown = (
        generate(QUESTION, "--draft-tokens", "4"),
        generate(QUESTION, "--draft-tokens", "4", "--stats", COLUMNS="200"),
    )
    assert shown.stdout == plain.stdout
    for word in ("dual:threshold=0.4", "tokens/s", "draft tokens 4: as asked", "accepted (", "times plain decoding"):
        assert word in shown.stderr
    off = generate(QUESTION, "--draft-tokens", "0", "--stats")
    assert "off: as asked" in off.stderr
    found = as_json(generate(QUESTION, "--draft-tokens", "4", "--stats", "--json"))
    assert found["speed_up"] > 0
    assert found["plain_tokens_per_second"] > 0


def test_drafting_is_the_default_only_where_the_aligned_model_is_small() -> None:
    small = as_json(generate(QUESTION, "--json", "-n", "4"))
    assert small["speculation"]["used"]
    assert "of the base model's parameters" in small["speculation"]["reason"]
    same = ["--base", "tiny:small-base", "--aligned", "tiny:small-aligned"]
    large = as_json(generate(QUESTION, *same, "--json", "-n", "4"))
    assert not large["speculation"]["used"]
    assert "too large to draft: 100%" in large["speculation"]["reason"]


def test_ctrl_c_ends_cleanly(folders: dict[str, Path]) -> None:
    models = [f"--{role}={path}" for role, path in folders.items()]
    code = "from kad.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "generate", "Hi", *models, "-n", "480", "-t", "0", "--draft-tokens", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    process.stdout.read(1)  # the text has begun; greedy, it has no end before 480 tokens
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 130, errors.decode()
    assert b"Traceback" not in errors


def test_the_public_package_and_the_command_agree() -> None:
    """`--base/--aligned` composes the same model as `from_models`."""
    model = kad.KadForCausalLM.from_models("tiny:big-base", "tiny:small-aligned", rule="primal:budget=0.9")
    ids = make_tiny_tokenizer()("First, 24 + 13 =", return_tensors="pt").input_ids
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    two = ["--base", "tiny:big-base", "--aligned", "tiny:small-aligned", "--rule", "primal:budget=0.9"]
    found = as_json(generate("First, 24 + 13 =", "--raw", *two, "--json", "-n", "4", "--draft-tokens", "0"))
    assert found["token_ids"] == tokens[0, ids.shape[-1] :].tolist()

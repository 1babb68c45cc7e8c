"""The programs in examples/ run as a user runs them, and print what is true.

The client of the server needs one: tests/vllm/test_examples.py runs it in vLLM's environment. The task of one's own is
run by tests/test_evaluation_own_tasks.py.
"""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import kad

EXAMPLES = Path(__file__).parents[1] / "examples"
ANSWER = r"The answer is \boxed{28}."


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Callable[[Path], str]:
    """show(program): what it prints."""

    def run_program(program: Path) -> str:
        runpy.run_path(str(program), run_name="__main__")
        return capsys.readouterr().out

    return run_program


def run(*arguments: str | Path, path: Path | None = None) -> str:
    """Standard output of a Python process; `path` is a folder of packages that it also finds."""
    found = os.pathsep.join(filter(None, [str(path or ""), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": found, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested() -> None:
    programs = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb") or path.is_dir()}
    tested = set(re.findall(r'EXAMPLES / "([\w.]+)"', Path(__file__).read_text(encoding="utf-8")))
    assert programs - tested == {"openai_client.py", "own_task"}


def test_composing_logits_by_hand_writes_what_generate_writes(show: Callable[[Path], str]) -> None:
    assert show(EXAMPLES / "compose_logits.py").strip().endswith(ANSWER)


def test_proxy_tuning_answers_under_products_and_a_cascade(show: Callable[[Path], str]) -> None:
    lines = show(EXAMPLES / "proxy_tuning.py").splitlines()
    assert [line.split()[0] for line in lines] == [
        "implicit_reward",
        "product:base=1,aligned=0.5",
        "dual:threshold=0.4",
    ]
    assert all(line.endswith(ANSWER) for line in lines)


def test_a_trace_of_two_experts_names_all_three_models(show: Callable[[Path], str]) -> None:
    text, *shares = show(EXAMPLES / "two_experts.py").splitlines()
    assert text.endswith(ANSWER + "<|end|>")
    assert [share.split("% from ")[1] for share in shares] == ["base", "aligned.base", "aligned.aligned"]
    assert sum(int(share.split("%")[0]) for share in shares) == pytest.approx(100, abs=2)
    assert int(shares[0].split("%")[0]) > 50


@pytest.mark.parametrize("program", [EXAMPLES / "guidance.py", EXAMPLES / "product_of_three.py"], ids=lambda p: p.stem)
def test_a_pair_in_a_pair_answers(program: Path, show: Callable[[Path], str]) -> None:
    assert show(program).splitlines()[0].endswith(ANSWER)


def test_token_origins_tell_the_form_from_the_sums(show: Callable[[Path], str]) -> None:
    lines = show(EXAMPLES / "token_origins.py").splitlines()
    tokens = [ast.literal_eval(line.split("  from base")[0].strip()) for line in lines]
    shares, deferred = zip(*(map(float, re.findall(r"\d\.\d\d", line)[-2:]) for line in lines), strict=True)
    assert "".join(tokens).endswith(ANSWER)
    assert all(0 <= share <= 1 and 0 <= mass <= 1 for share, mass in zip(shares, deferred, strict=True))
    digits = [share for token, share in zip(tokens, shares, strict=True) if token.isdigit()]
    assert min(digits) > 0.9, "the base model calculates"
    assert tokens[0] == "First"
    assert shares[0] == 0, "the aligned model opens"


def test_a_batch_answers_every_question(show: Callable[[Path], str]) -> None:
    lines = show(EXAMPLES / "batch.py").splitlines()
    questions, answers = lines[::2], lines[1::2]
    assert questions == [problem.question for problem in kad.tiny.problems("held-out", 8)]
    assert sum(answer.endswith("(right)") for answer in answers) >= 7


def test_speculation_writes_the_same_text_in_fewer_forwards(show: Callable[[Path], str]) -> None:
    text, same, forwards, drafts = show(EXAMPLES / "speculative.py").splitlines()
    assert text.endswith(ANSWER)
    assert same == "the same as without drafts: True"
    tokens, windows = map(int, re.findall(r"\d+", forwards))
    accepted, drafted = map(int, re.findall(r"\d+", drafts)[:2])
    assert windows < tokens / 2
    assert 0 < accepted <= drafted


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "adapter"])
def test_a_small_model_of_ones_own_leads_the_big_one(
    lora: bool, show: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of the guide's training: only the answers are learned, and the result is an aligned model."""
    if lora:
        pytest.importorskip("peft", reason='PEFT is not here: pip install -e ".[peft]"')
    folder, data, out = EXAMPLES / "own_small_model", tmp_path / "conversations.jsonl", tmp_path / "my-small"
    examples = show(folder / "conversations.py").splitlines()
    assert len(examples) == 2000
    data.write_text("\n".join(examples[:6]) + "\n")
    small = kad.tiny.path("small-base")
    command = ["finetune.py", small, data, "--out", out, "--steps", 2, "--rows", 4, *(["--lora", 2] if lora else [])]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    program = runpy.run_path(str(folder / "finetune.py"), run_name="__main__")

    pair = kad.load(base="tiny:big-base", aligned=str(out), device="cpu")
    tokens, labels = program["encode"](pair.tokenizer, json.loads(examples[0]))
    learned = pair.tokenizer.decode([token for token in labels if token != program["IGNORED"]])
    assert learned == json.loads(examples[0])["completion"][0]["content"] + "<|end|>"
    assert all(label in (token, -100) for token, label in zip(tokens, labels, strict=True))
    assert pair.generation_config.eos_token_id == pair.tokenizer.eos_token_id
    before = kad.load(base="tiny:big-base", aligned=str(small), device="cpu").aligned
    ids = torch.tensor([tokens])
    with torch.no_grad():
        assert (pair.aligned(ids).logits - before(ids).logits).abs().max() > 0.01


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of examples/own_rule, installed by pip into a folder of its own."""
    pytest.importorskip("pip", reason="pip is not in this environment: python -m ensurepip")
    folder = tmp_path_factory.mktemp("own-rule")
    # Without isolation: the build needs only hatchling, which the extra `test` brings, and no package index.
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    run(*pip, "--target", folder, EXAMPLES / "own_rule")
    return folder


def test_a_rule_from_another_package_is_listed_and_generates(installed: Path) -> None:
    question = "Mia has 24 apples. She buys 13 more. Then she loses 9. How many are left?"
    generate = ["generate", "--pair", "tiny", "--temperature", "0", "--rule", "entropic:bound=0.7", question]
    # One process for both commands: imports are most of its time.
    calls = "".join(f"app({command}, standalone_mode=False)\n" for command in (["rules", "--json"], generate))
    output = run("-c", f"from kad.cli.main import app\n{calls}", path=installed)
    rules, end = json.JSONDecoder().raw_decode(output)
    (own,) = (rule for rule in rules["rules"] if rule["name"] == "entropic")
    assert own["package"] == "kad-own-rule 0.1.0"
    assert own["parameters"][0]["default"] == 0.7
    assert rules["skipped"] == []
    assert output[end:].strip().endswith(ANSWER)


@pytest.mark.slow
def test_figure_1_is_drawn_and_the_trace_shown(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason='the notebook: pip install -e ".[test]"')
    from nbclient import NotebookClient

    notebook = nbformat.read(EXAMPLES / "figure1.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are made by running it, not kept"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    _, answer, position, figure, trace = (cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    assert ANSWER.replace("\\", "\\\\") in answer[-1].data["text/plain"]
    alpha, total = map(float, re.findall(r"= (\d\.\d+)", position[-1].text))
    assert 0.05 < alpha < 0.95
    assert total == pytest.approx(1.0, abs=1e-5)
    assert "image/png" in figure[-1].data
    assert "<iframe" in trace[-1].data["text/html"]

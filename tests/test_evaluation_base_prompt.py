"""An evaluation in which the base model is asked in a way of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

import kad
from kad.errors import UsageError
from kad.evaluation.evaluate import Plan, evaluate
from kad.evaluation.methods import parse_methods
from kad.evaluation.results.settings import Settings
from kad.evaluation.results.storage import Record, read_samples
from kad.evaluation.tasks.task import load_tasks
from kad.pair.base_prompt import BasePrompt
from kad.pair.sources import Source

ASKED = BasePrompt.parse("Task: {question}\\nSolution: ")
TINY = {"base": "tiny:big-base", "aligned": "tiny:small-aligned"}
LENGTH = 12


def run(out: Path, base_prompt: BasePrompt | None, methods: str) -> tuple[Settings, dict[str, list[Record]]]:
    plan = Plan(
        models={role: Source.parse(name) for role, name in TINY.items()},
        methods=tuple(parse_methods(methods)),
        tasks=("kad_tiny",),
        limit=3,
        temperature=0.0,
        max_new_tokens=LENGTH,
        base_prompt=base_prompt,
        diagnostics=False,
    )
    settings = evaluate(plan, out)
    samples = sorted(read_samples(out), key=lambda record: record["question"])
    return settings, {name: [r for r in samples if r["method"] == name] for name in settings.methods}


def test_compositions_and_the_base_model_alone_are_asked_by_it(tmp_path: Path) -> None:
    methods = "base;aligned;dual;dual@speculative:num_draft_tokens=3"
    settings, asked = run(tmp_path / "own", ASKED, methods)
    assert settings.base_prompt is not None
    assert settings.base_prompt["template"] == "Task: {question}\nSolution: "
    questions = [document["prompt"] for document in load_tasks(["kad_tiny"], limit=3)[0].documents]
    assert [record["prompt"] for record in asked["base"]] == [f"Task: {text}\nSolution:" for text in questions]
    pair = kad.load(**TINY, base_prompt=ASKED)
    sampling = kad.Sampling(temperature=0, max_new_tokens=LENGTH)
    texts = [kad.generate(pair, text, sampling=sampling, origins=False).text for text in questions]
    plain, drafted = (asked[name] for name in settings.methods if name.startswith("dual"))
    assert [record["text"] for record in plain] == [record["text"] for record in drafted] == texts
    _, same = run(tmp_path / "same", None, "base;aligned;dual")
    assert [r["text"] for r in asked["aligned"]] == [r["text"] for r in same["aligned"]]
    assert [r["text"] for r in asked["base"]] != [r["text"] for r in same["base"]]
    with pytest.raises(UsageError, match="base_prompt"):
        run(tmp_path / "own", None, methods)


def test_a_stop_ends_what_the_base_model_says_alone(tmp_path: Path) -> None:
    said = run(tmp_path / "whole", BasePrompt("{question}\n"), "base")[1]["base"]
    stop = said[0]["text"][3:5]
    stopped = run(tmp_path / "cut", BasePrompt("{question}\n", (stop,)), "base")[1]["base"]
    assert [r["text"] for r in stopped] == [r["text"].partition(stop)[0] for r in said]
    assert stopped[0]["finished"]
    assert stopped[0]["tokens"] < said[0]["tokens"]

"""Runs with real (random, tiny) models: reproducible, independent of company, and safe from SIGKILL at any moment."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList

import kad
from conftest import make_model
from kad.errors import UsageError, VocabularyError
from kad.evaluation import evaluate as evaluation
from kad.evaluation.methods import parse_methods
from kad.evaluation.results.settings import fingerprint
from kad.evaluation.results.storage import read_samples
from kad.pair.sources import Source
from kad.text.batch import Noise


def make_plan(folders: dict[str, Path], **changes: Any) -> evaluation.Plan:
    """A dozen questions, three methods, short answers: under a second."""
    options: dict[str, Any] = {
        "models": {role: Source.parse(str(folder)) for role, folder in folders.items()},
        "methods": tuple(parse_methods("aligned;dual:threshold=0.2;implicit_reward")),
        "tasks": ("kad_tiny",),
        "limit": 6,
        "samples": 2,
        "max_new_tokens": 12,
        "batch_size": 4,
    }
    return evaluation.Plan(**(options | changes))


def samples_of(folder: Path) -> list[dict[str, Any]]:
    """The finished samples in a fixed order, without what is measured in seconds."""
    rows = [{key: value for key, value in record.items() if key != "seconds"} for record in read_samples(folder)]
    return sorted(rows, key=lambda row: (row["method"], row["question"], row["sample"]))


@pytest.fixture(scope="session")
def uninterrupted(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    torch.set_num_threads(1)
    evaluation.evaluate(make_plan(folders), out)
    return out


def test_a_run_draws_every_sample_once(uninterrupted: Path) -> None:
    rows = samples_of(uninterrupted)
    keys = {(row["method"], row["question"], row["sample"]) for row in rows}
    assert len(rows) == len(keys) == 3 * 6 * 2
    assert all(row["tokens"] <= 12 and row["finished"] == (row["tokens"] < 12 or row["finished"]) for row in rows)
    assert len({row["text"] for row in rows}) > 20


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    folders: dict[str, Path], uninterrupted: Path, tmp_path: Path
) -> None:
    evaluation.evaluate(make_plan(folders), tmp_path / "again")
    assert samples_of(tmp_path / "again") == samples_of(uninterrupted)
    evaluation.evaluate(make_plan(folders, seed=1), tmp_path / "other")
    texts = [{row["text"] for row in samples_of(folder)} for folder in (tmp_path / "other", uninterrupted)]
    assert len(texts[0] & texts[1]) < 5


def test_a_sample_does_not_depend_on_its_company(folders: dict[str, Path], uninterrupted: Path, tmp_path: Path) -> None:
    evaluation.evaluate(make_plan(folders, batch_size=1), tmp_path)
    alone, together = samples_of(tmp_path), samples_of(uninterrupted)
    assert [row["text"] for row in alone] == [row["text"] for row in together]
    for field in ("deferred_mass", "acceptance"):
        for one, other in zip(alone, together, strict=True):
            assert one[field] == pytest.approx(other[field], abs=1e-5)


def test_only_the_models_that_are_needed_are_loaded(folders: dict[str, Path], tmp_path: Path) -> None:
    nowhere = Source("no/such-model")
    models = {"aligned": Source.parse(str(folders["aligned"])), "base": nowhere}
    plan = make_plan(folders, models=models, methods=tuple(parse_methods("aligned")))
    evaluation.evaluate(plan, tmp_path)
    assert len(samples_of(tmp_path)) == 12


def test_a_missing_model_is_found_before_anything_runs(folders: dict[str, Path]) -> None:
    models = {role: Source.parse(str(folders[role])) for role in ("base", "aligned")}
    with pytest.raises(UsageError, match="implicit_reward needs the reference model. Give one with --reference MODEL"):
        make_plan(folders, models=models)


def test_diagnostics_equal_the_definition(folders: dict[str, Path], uninterrupted: Path) -> None:
    """Deferred mass and expected acceptance from per-token forward passes without padding or batches."""
    row = next(row for row in samples_of(uninterrupted) if row["method"].startswith("dual"))
    model = kad.KadForCausalLM.from_models(str(folders["base"]), str(folders["aligned"]), rule=row["method"])
    from kad.evaluation.tasks.task import chat_renderer, load_tasks
    from kad.pair.model_files import load_tokenizer

    tokenizer = load_tokenizer(Source.parse(str(folders["aligned"])))
    question = next(
        question
        for question in load_tasks(["kad_tiny"], limit=6)[0].questions(chat_renderer(tokenizer))
        if question.question_id == row["question"]
    )
    prompt = tokenizer(question.prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    from kad.evaluation.evaluate import sample_seed
    from kad.evaluation.methods import parse_method

    noise = Noise([sample_seed(0, "kad_tiny", row["question"], row["sample"])], torch.device("cpu"))
    drawing = LogitsProcessorList([lambda ids, scores: noise.add(scores)])
    text = model.generate(prompt, do_sample=False, max_new_tokens=12, logits_processor=drawing)
    assert tokenizer.decode(text[0, prompt.shape[1] :], skip_special_tokens=True) == row["text"]
    alphas, betas = [], []
    with torch.no_grad():
        for end in range(prompt.shape[1], text.shape[1]):
            p, q = (part(text[:, :end]).logits[0, -1].double() for part in (model.base, model.aligned))
            alphas.append(kad.deferred_mass(parse_method(row["method"]).rule, p, q))
            betas.append(kad.acceptance(parse_method(row["method"]).rule, p, q))
    assert row["deferred_mass"] == pytest.approx(float(torch.stack(alphas).mean()), abs=1e-5)
    assert row["acceptance"] == pytest.approx(float(torch.stack(betas).mean()), abs=1e-5)


@pytest.fixture(scope="module")
def children() -> Any:
    """Processes that start with everything imported, so that a kill finds the run at work and not at importing."""
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "kad.evaluation.engine",
            "lm_eval.tasks",
            "datasets",
            "kad.tiny",
            "transformers.models.llama.modeling_llama",
        ]
    )
    return context


@pytest.mark.slow
def test_sigkill_at_twenty_random_moments(
    folders: dict[str, Path], uninterrupted: Path, tmp_path: Path, children: Any
) -> None:
    """After any kills, the union of samples equals the uninterrupted run: nothing lost, nothing twice, nothing
    else."""
    moments = random.Random(11)
    plan = make_plan(folders)
    for name in ("first", "second"):  # the first one also pays for the server's imports
        warm = children.Process(target=evaluation.evaluate, args=(plan, tmp_path / name))
        start = time.monotonic()
        warm.start()
        warm.join()
        duration = time.monotonic() - start
    landed, at_work, directory = 0, 0, 0
    for _ in range(200):
        if landed >= 20:
            break
        out = tmp_path / str(directory)
        process = children.Process(target=evaluation.evaluate, args=(plan, out))
        process.start()
        process.join(timeout=moments.uniform(0.0, duration))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            landed += 1
            written = (out / "samples.jsonl").stat().st_size if (out / "samples.jsonl").exists() else 0
            at_work += written > 0
        else:
            assert process.exitcode == 0
            assert samples_of(out) == samples_of(uninterrupted)
            directory += 1
    assert landed >= 20
    assert at_work >= 5, "too few kills hit a run that had begun to write"
    last = tmp_path / str(directory)
    evaluation.evaluate(plan, last)
    assert samples_of(last) == samples_of(uninterrupted)


def test_a_model_is_what_lies_in_its_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    here = fingerprint(Source(str(folders["aligned"])))
    elsewhere = tmp_path / "aligned"
    shutil.copytree(folders["aligned"], elsewhere)
    assert fingerprint(Source(str(elsewhere))) == here
    weights = elsewhere / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert fingerprint(Source(str(elsewhere))) != here
    assert fingerprint(Source("some/model")) == "some/model"
    assert fingerprint(Source("some/model", "abc")) == "some/model@abc"


def test_other_weights_in_the_same_place_are_another_run(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "aligned"
    shutil.copytree(folders["aligned"], folder)
    plan = make_plan(folders, models={"aligned": Source(str(folder))}, methods=tuple(parse_methods("aligned")))
    evaluation.evaluate(plan, tmp_path / "run")
    make_model(9).save_pretrained(folder)
    with pytest.raises(UsageError, match=r"models\.aligned was \"aligned:"):
        evaluation.evaluate(plan, tmp_path / "run")


def test_the_pairs_own_chat_template_counts(folders: dict[str, Path], tmp_path: Path) -> None:
    own = tmp_path / "pair"
    shutil.copytree(folders["aligned"], own)
    (own / "chat_template.jinja").write_text("{{ messages[-1].content }} ->")
    models = {role: Source(str(folder)) for role, folder in folders.items()} | {"pair": Source(str(own))}
    engine = evaluation.make_engine(make_plan(folders, models=models))
    (method,) = parse_methods("dual")
    assert engine.renderer(method)([{"role": "user", "content": "2 + 2"}]) == "2 + 2 ->"


def test_the_base_model_is_asked_by_the_template_of_another_and_ends_by_its_own_tokens(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    big = tmp_path / "big"
    shutil.copytree(folders["aligned"], big)
    (big / "chat_template.jinja").write_text("{{ messages[-1].content }} ->")
    (big / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    methods = parse_methods(f"base={big};base")
    engine = evaluation.make_engine(make_plan(folders, methods=tuple(methods)))
    conversation = [{"role": "user", "content": "2 + 2"}]
    asked, plain = (engine.renderer(method)(conversation) for method in methods)
    assert (asked, plain == asked) == ("2 + 2 ->", False)
    own = {engine.pair(methods[0]).tokenizer.eos_token_id, engine.model("base").generation_config.eos_token_id}
    assert set(engine.pair(methods[0]).generation_config.eos_token_id) == own - {None}
    assert engine.pair(methods[0]).models["aligned"] is engine.pair(methods[1]).models["aligned"]
    other = tuple(parse_methods("base=tiny:big-aligned"))
    engine = evaluation.make_engine(make_plan(folders, methods=other))
    with pytest.raises(VocabularyError, match="The base and named models have different vocabularies"):
        engine.renderer(other[0])

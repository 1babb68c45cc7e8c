"""Tasks of one's own: generated answers, options by likelihood, perplexity in lm-eval; and what a bad row says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import kad
from kad.cli.main import app
from kad.evaluation.evaluate import Plan, evaluate
from kad.evaluation.methods import parse_methods
from kad.evaluation.results.storage import read_samples
from kad.evaluation.tasks.task import chat_renderer, load_tasks
from kad.pair.sources import Source

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_task"
CHOICES = """
task: colors
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_target: right
doc_to_choice: options
metadata: {development: true}
"""
ROWS = [
    {"question": "Sky?", "options": ["blue", "green grass"], "right": 0},
    {"question": "Grass?", "options": ["red", "green", "a mix of both"], "right": 1},
    {"question": "Sun?", "options": ["black", "yellow"], "right": 1},
]


def write(folder: Path, task: str, rows: list[Any] | str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "task.yaml").write_text(task)
    lines = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines)
    return folder


def run(*arguments: object, code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["eval", *map(str, arguments)])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def test_the_page_shows_the_example() -> None:
    page = (EXAMPLE.parents[1] / "docs" / "own-task.md").read_text("utf-8")
    assert f"```yaml\n{(EXAMPLE / 'shop.yaml').read_text('utf-8')}```" in page
    first = (EXAMPLE / "questions.jsonl").read_text("utf-8").splitlines()[:2]
    assert "```json\n" + "\n".join(first) + "\n```" in page


@pytest.mark.core
def test_the_example_from_its_folder_to_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another folder than the task's, stopped answers, two methods, resumed without a new answer."""
    monkeypatch.chdir(tmp_path)
    command = [
        "--include-path",
        EXAMPLE,
        "--tasks",
        "shop",
        "--limit",
        "6",
        "--methods",
        "aligned;pair;pair@speculative",
    ]
    report = json.loads(run(*command, "--out", "run", "--json").stdout)
    accuracy = {row["method"]: row["accuracy"]["exact_match"]["estimate"] for row in report["rows"]}
    assert accuracy["pair"] == accuracy["pair@speculative"] == 1.0
    assert report["rows"][1]["versus_baseline"]["exact_match"]["questions"] == 6
    before = (tmp_path / "run" / "samples.jsonl").read_bytes()
    assert "exact_match %" in run(*command, "--out", "run").stdout
    assert (tmp_path / "run" / "samples.jsonl").read_bytes() == before


@pytest.mark.parametrize("method", ["pair", "pair@speculative"])
def test_an_answer_ends_at_the_texts_of_the_task(method: str, tmp_path: Path) -> None:
    """`until` ends generation at once, for plain decoding in batches and for the loop, and is no part of the answer."""
    task = (EXAMPLE / "shop.yaml").read_text().replace(r'["\n\n"]', '[" = "]').replace("questions", "rows")
    folder = write(tmp_path / "task", task, (EXAMPLE / "questions.jsonl").read_text())
    whole, cut = (
        [run_samples(tmp_path / name, included, method)] for name, included in (("whole", EXAMPLE), ("cut", folder))
    )
    for long, short in zip(whole[0], cut[0], strict=True):
        assert short["text"] == long["text"].partition(" = ")[0] != long["text"]
        assert short["finished"]
        assert short["tokens"] < long["tokens"] / 2


def run_samples(out: Path, folder: Path, method: str) -> list[dict[str, Any]]:
    run(
        "--include-path", folder, "--tasks", "shop", "--limit", 3, "--methods", method, "--out", out, "--no-diagnostics"
    )
    return sorted(read_samples(out), key=lambda record: record["question"])


@pytest.mark.core
def test_options_are_scored_under_each_method(folders: dict[str, Path], tmp_path: Path) -> None:
    """The log-likelihoods are those of the definition, pass by pass; the marks are those of the best option."""
    folder = write(tmp_path / "task", CHOICES, ROWS)
    models = {role: Source.parse(str(folders[role])) for role in ("base", "aligned")}
    methods = tuple(parse_methods("base;dual:threshold=0.2"))
    plan = Plan(models=models, methods=methods, tasks=("colors",), include_path=folder, samples=3)
    evaluate(plan, tmp_path / "run")
    records = list(read_samples(tmp_path / "run"))
    assert len(records) == 2 * len(ROWS)  # one sample: likelihoods do not vary
    model = kad.KadForCausalLM.from_models(str(folders["base"]), str(folders["aligned"]), rule="dual:threshold=0.2")
    rule, tokenizer = model.rule, model.tokenizer
    (task,) = load_tasks(["colors"], include_path=folder)
    questions = {question.question_id: question for question in task.questions(chat_renderer(tokenizer))}
    for record in records:
        question = questions[record["question"]]
        row = ROWS[int(record["question"])]
        assert [text for _, text in question.continuations] == row["options"]
        context = tokenizer(question.prompt, add_special_tokens=False).input_ids
        expected = []
        for option in row["options"]:
            total, ids = 0.0, list(context)
            for token in tokenizer(option, add_special_tokens=False).input_ids:
                with torch.no_grad():
                    p, q = (part(torch.tensor([ids])).logits[0, -1].double() for part in (model.base, model.aligned))
                log_pi = kad.compose(rule, p, q) if record["method"] != "base" else p.log_softmax(-1)
                total, ids = total + float(log_pi[token]), [*ids, token]
            expected.append(total)
        assert record["log_likelihoods"] == pytest.approx(expected, abs=1e-3)
        best = max(range(len(expected)), key=expected.__getitem__)
        assert record["text"] == row["options"][best]
        assert record["answer"] == row["options"][row["right"]]
        assert record["marks"]["acc"] == float(best == row["right"])


@pytest.mark.core
def test_the_harness_gives_the_same_log_likelihoods(folders: dict[str, Path]) -> None:
    from lm_eval.api.instance import Instance

    from kad.evaluation.engine import Engine
    from kad.evaluation.harness import KadLM

    pairs = [("What is", " two"), ("A rather longer context ", "than that"), ("", "alone")]
    two = {role: str(folders[role]) for role in ("base", "aligned")}
    lm = KadLM(**two, rule="dual:threshold=0.2")
    theirs = lm.loglikelihood(
        [Instance(request_type="loglikelihood", doc={}, arguments=one, idx=0, metadata=("t", 0, 1)) for one in pairs]
    )
    engine = Engine({role: Source.parse(place) for role, place in two.items()})
    (method,) = parse_methods("dual:threshold=0.2")
    for (ours, greedy), (found, theirs_greedy) in zip(engine.log_likelihoods(method, pairs), theirs, strict=True):
        assert ours == pytest.approx(found, abs=1e-3)
        assert greedy == theirs_greedy


@pytest.mark.core
def test_a_perplexity_task_runs_in_lm_eval(folders: dict[str, Path], tmp_path: Path) -> None:
    """A task in the style of wikitext, with the model `kad`."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from kad.evaluation.harness import KadLM

    text = "A page of text, and some more of it."
    task = (
        "task: pages\ncustom_dataset: !function rows.load\ntest_split: test\noutput_type: loglikelihood_rolling\n"
        'doc_to_text: ""\ndoc_to_target: "{{page}}"\nmetric_list: [{metric: word_perplexity}]\n'
    )
    folder = write(tmp_path / "task", task, [])
    rows = f"datasets.Dataset.from_list([{{'page': {text!r}}}])"
    (folder / "rows.py").write_text(f"import datasets\n\ndef load(**_):\n    return {{'test': {rows}}}\n")
    two = {role: str(folders[role]) for role in ("base", "aligned")}
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(KadLM(**two, rule="dual:threshold=0.2"), tasks=["pages"], task_manager=manager)
    assert found is not None
    model = kad.load(**two, rule="dual:threshold=0.2")
    first = [model.tokenizer.bos_token_id]
    log_pi = kad.score(model, first, text).log_pi.sum()
    words = len(text.split())
    assert found["results"]["pages"]["word_perplexity,none"] == pytest.approx(float((-log_pi / words).exp()), rel=1e-3)
    assert (
        "Run it in lm-eval" in run("--include-path", folder, "--tasks", "pages", "--out", tmp_path / "o", code=2).stderr
    )


BAD = (EXAMPLE / "shop.yaml").read_text().replace("questions.jsonl", "rows.jsonl")
GOOD = '{"question": "1 + 1?", "answer": "2"}\n'


@pytest.mark.parametrize(
    ("task", "rows", "words"),
    [
        (BAD, GOOD + '{"question": "2 + 2?"}\n', "rows.jsonl, line 2 lacks the field 'answer', which doc_to_target"),
        (BAD, "\n" + '{"answer": "2"}\n', "rows.jsonl, line 2 lacks the field 'question', which doc_to_text"),
        (BAD, GOOD + "{oops}\n", "rows.jsonl, line 2 is not JSON"),
        (BAD, GOOD + "[1]\n", "rows.jsonl, line 2 is no JSON object but list"),
        (BAD, "\n", "rows.jsonl has no row"),
        (BAD.replace("rows.jsonl", "gone.jsonl"), GOOD, "No file gone.jsonl in"),
        (BAD.replace("do_sample: false", "top_p: 0.9"), GOOD, "generation_kwargs has top_p=0.9"),
        (BAD.replace("test_split: test", "test_split: tset"), GOOD, "cannot be used as a task"),
        (BAD.replace("exact_match", "exact_mtch"), GOOD, "marking by exact_mtch failed"),
        (BAD.replace("output_type:", "output_type"), GOOD, "is no task file that can be read"),
        (BAD.replace("task: shop", "task: shp"), GOOD, "Unknown task shop. Choose from: kad_arc_challenge"),
        (CHOICES.replace("colors", "shop"), [{"question": "Sky?", "right": 0}], "lacks the field 'options'"),
    ],
)
def test_a_mistake_names_its_place(task: str, rows: Any, words: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "task", task, rows)
    stderr = run("--include-path", folder, "--tasks", "shop", "--out", tmp_path / "run", code=2).stderr
    assert words in " ".join(stderr.split())
    assert len(stderr.strip().splitlines()) <= 2
    assert not (tmp_path / "run").exists()


def test_a_bad_row_of_a_published_task_names_its_place(tmp_path: Path) -> None:
    (tmp_path / "gsm8k_test.jsonl").write_text('{"question": "1?", "answer": "#### 1"}\n{"question": "2?"}\n')
    command = ["--tasks", "kad_gsm8k", "--data-dir", tmp_path, "--out", tmp_path / "run"]
    assert "gsm8k_test.jsonl, line 2 lacks the field 'answer'" in run(*command, code=2).stderr
    (tmp_path / "gsm8k_test.jsonl").write_text('{"question": "1?", "answer": "1"}\n')
    assert "line 1 is no row of this task" in run(*command, code=2).stderr


def test_another_task_file_is_another_run(tmp_path: Path) -> None:
    folder = write(tmp_path / "task", BAD, GOOD)
    command = ["--include-path", folder, "--tasks", "shop", "--methods", "aligned", "--out", tmp_path / "run"]
    run(*command, "--max-new-tokens", "2")
    write(folder, BAD.replace("{{question}}", "Say: {{question}}"), GOOD)
    assert "tasks.0.data_sha256 was" in run(*command, "--max-new-tokens", "2", code=2).stderr


def test_tuning_asks_the_task_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "task", BAD, GOOD)
    options = ["--no-write", "--grid", "0.3,0.4", "-n", "2", "--include-path", folder, "--tasks", "shop"]
    done = CliRunner().invoke(app, ["tune", *map(str, options), "--out", str(tmp_path / "no")])
    assert done.exit_code == 2
    assert "does not say `metadata: {development: true}`" in done.stderr
    write(folder, BAD + "metadata: {development: true}\n", GOOD)
    done = CliRunner().invoke(app, ["tune", *map(str, options), "--out", str(tmp_path / "yes"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["metric"] == "exact_match"


def test_the_template_of_a_task_runs_in_a_sandbox_and_task_files_are_said_to_be_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    reach = f"{{{{ cycler.__init__.__globals__.os.popen('touch {tmp_path}/ran').read() }}}}"
    folder = write(tmp_path / "tasks", CHOICES.replace("doc_to_text: question", f'doc_to_text: "{reach}"'), ROWS)
    command = ["--include-path", folder, "--tasks", "colors", "--limit", "1", "--methods", "aligned", "--out"]
    done = run(*command, tmp_path / "run", code=2)
    assert "access to attribute '__init__' of 'type' object is unsafe" in done.stderr
    assert not (tmp_path / "ran").exists()
    assert "note: a task file is code" in done.stderr
    assert "a task file is code" not in run(*command, tmp_path / "run", code=2).stderr

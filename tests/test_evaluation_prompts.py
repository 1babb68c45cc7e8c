"""The prompts of all tasks for the published families' chat templates, against golden files; and what the data
become.

The rows (tests/golden/rows) and the templates (tests/golden/templates, in the shape of Qwen3's, OLMo-2's, and of one
that refuses a system role) are written by hand. After a wanted change: KAD_UPDATE_GOLDEN=1 pytest
tests/test_evaluation_prompts.py
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from conftest import make_tokenizer
from kad.errors import MissingExtraError, UsageError
from kad.evaluation.tasks import documents
from kad.evaluation.tasks.task import PAPER_TASKS, Task, chat_renderer, known_tasks, load_tasks
from needs import FULL_ROWS, SAMPLE_ROWS, full_rows

GOLDEN = Path(__file__).parent / "golden"
TEMPLATES = sorted(path.stem for path in (GOLDEN / "templates").glob("*.jinja"))


def tokenizer_with(template: str) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (GOLDEN / "templates" / f"{template}.jinja").read_text()
    return tokenizer


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    loaded = load_tasks(["kad_paper", "kad_tiny"], data_dir=GOLDEN / "rows", limit=2)
    return {task.info.name: task for task in loaded}


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", PAPER_TASKS)
def test_prompts_equal_the_golden_files(tasks: dict[str, Task], name: str, template: str) -> None:
    questions = tasks[name].questions(chat_renderer(tokenizer_with(template)))
    rendered = "".join(f"----- {q.question_id}, answer {q.document['answer']}\n{q.prompt}\n" for q in questions)
    file = GOLDEN / "prompts" / template / f"{name}.txt"
    if os.environ.get("KAD_UPDATE_GOLDEN"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(rendered)
    assert rendered == file.read_text()


def test_thinking_is_off_and_the_system_prompt_is_there(tasks: dict[str, Task]) -> None:
    question = tasks["kad_gsm8k"].questions(chat_renderer(tokenizer_with("qwen3")))[0]
    assert question.prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert "<|im_start|>system\nAnswer the question by walking through the reasoning step by step." in question.prompt


def test_a_template_that_refuses_a_system_role_does_without(tasks: dict[str, Task]) -> None:
    question = tasks["kad_gsm8k"].questions(chat_renderer(tokenizer_with("no_system")))[0]
    assert "step by step" not in question.prompt
    assert question.prompt.startswith("<s><start_of_turn>user\nMira bakes")


def test_a_tokenizer_without_a_template_is_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UsageError, match="no chat template"):
        chat_renderer(tokenizer)


def test_the_published_tasks_carry_their_length_and_split(tasks: dict[str, Task]) -> None:
    for name in PAPER_TASKS:
        info = tasks[name].info
        assert (info.max_new_tokens, info.temperature, info.development) == (1024, 1.0, False)
    assert {tasks[name].info.split for name in PAPER_TASKS} == {"test", "validation"}


def test_options_are_lettered_in_order_whatever_the_labels(tasks: dict[str, Task]) -> None:
    letters, numbers = tasks["kad_arc_challenge"].documents
    assert "\nB). an ice cube\n" in letters["prompt"]
    assert letters["answer"] == "B"
    assert "\nC). a cork\n" in numbers["prompt"]
    assert numbers["answer"] == "C"


def test_the_shuffle_is_a_permutation_fixed_by_the_question() -> None:
    order = documents.shuffled("Where did fortune cookies originate?", 6)
    assert sorted(order) == list(range(6))
    assert order == documents.shuffled("Where did fortune cookies originate?", 6)
    # Written down: a change of this order changes the benchmark.
    assert order == FORTUNE_COOKIES
    orders = [documents.shuffled(f"question {index}", 4) for index in range(2000)]
    firsts = Counter(order.index(0) for order in orders)
    assert all(430 <= firsts[position] <= 570 for position in range(4))


FORTUNE_COOKIES = [3, 2, 0, 5, 1, 4]


def test_the_options_move_and_the_letter_follows_the_right_one() -> None:
    check_the_right_options(SAMPLE_ROWS, rows=25, always_a=0.35)


@full_rows
@pytest.mark.slow
def test_the_first_option_is_no_longer_always_right() -> None:
    check_the_right_options(FULL_ROWS, rows=817, always_a=0.3)


def check_the_right_options(folder: Path, *, rows: int, always_a: float) -> None:
    (task,) = load_tasks(["kad_truthful_qa"], data_dir=folder)
    answers = Counter(document["answer"] for document in task.documents)
    assert answers["A"] / len(task.documents) < always_a
    assert answers.total() == rows
    by_position = [json.loads(line)["mc1_targets"] for line in (folder / "truthful_qa_mc_validation.jsonl").open()]
    for document, row in zip(task.documents, by_position, strict=True):
        right = row["choices"][row["labels"].index(1)]
        assert f"\n{document['answer']}). {right}\n" in document["prompt"]


@pytest.mark.parametrize(
    ("name", "rows", "paper_unreachable"),
    [
        ("kad_gsm8k", 12, 0),
        ("kad_math500", 29, 0),
        ("kad_svamp", 13, 0),
        ("kad_arc_challenge", 12, 0),
        ("kad_commonsense_qa", 15, 0),
        ("kad_truthful_qa", 25, 2),  # the two right answers that lie past J, which the published metric cannot read
    ],
)
def test_answers_mark_themselves_right(name: str, rows: int, paper_unreachable: int) -> None:
    check_answers(SAMPLE_ROWS, name, rows, paper_unreachable)


@full_rows
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows", "paper_unreachable"),
    [
        ("kad_gsm8k", 1319, 0),
        ("kad_math500", 500, 0),
        ("kad_svamp", 1000, 0),
        ("kad_arc_challenge", 1172, 0),
        ("kad_commonsense_qa", 1221, 0),
        ("kad_truthful_qa", 817, 2),
    ],
)
def test_every_answer_marks_itself_right(name: str, rows: int, paper_unreachable: int) -> None:
    check_answers(FULL_ROWS, name, rows, paper_unreachable)


def check_answers(folder: Path, name: str, rows: int, paper_unreachable: int) -> None:
    (task,) = load_tasks([name], data_dir=folder)
    assert len(task.documents) == rows
    by_solution = [task.mark(document, [document["solution"]])["paper"] for document in task.documents]
    stated = [f"So the answer is \\boxed{{{document['answer']}}}." for document in task.documents]
    by_answer = [task.mark(document, [text])["strict"] for document, text in zip(task.documents, stated, strict=True)]
    assert rows - sum(by_solution) == paper_unreachable
    assert sum(by_answer) == rows


def test_limit_and_digest(tasks: dict[str, Task]) -> None:
    (one,) = load_tasks(["kad_arc_challenge"], data_dir=GOLDEN / "rows", limit=1)
    assert one.info.rows == 1
    assert one.info.data_sha256 != tasks["kad_arc_challenge"].info.data_sha256
    assert one.info.source == "local file"


def test_unknown_tasks_and_missing_files_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Unknown task gsm9k. Choose from: .*kad_gsm8k"):
        load_tasks(["gsm9k"])
    with pytest.raises(UsageError, match=r"No file gsm8k_test\.jsonl"):
        load_tasks(["kad_gsm8k"], data_dir=tmp_path)
    (tmp_path / "gsm8k_test.jsonl").write_text("not json\n")
    with pytest.raises(UsageError, match="line 1 is not JSON"):
        load_tasks(["kad_gsm8k"], data_dir=tmp_path)
    assert "kad_paper" in known_tasks()


def test_without_the_hub_one_line_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(UsageError, match=r"Cannot load the data set openai/gsm8k .*--data-dir DIR with gsm8k_test"):
        documents.load("openai/gsm8k", "test", "gsm8k_test.jsonl", "main")


def test_a_missing_lm_eval_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kad.hosts.is_installed", lambda module: False)
    with pytest.raises(MissingExtraError, match=r'lm-eval is not installed.*"kad-align\[eval\]"'):
        load_tasks(["kad_tiny"])


def test_facts_are_two_halves_whose_answers_are_not_in_the_questions() -> None:
    held_out, development = load_tasks(["kad_facts", "kad_facts_development"])
    questions = [document["prompt"] for task in (held_out, development) for document in task.documents]
    assert len(questions) == len(set(questions)) >= 200
    assert abs(len(held_out.documents) - len(development.documents)) <= 1
    assert (held_out.info.development, development.info.development) == (False, True)
    assert held_out.info.max_new_tokens == 64
    for task in (held_out, development):
        assert task.info.source == "embedded"
        for document in task.documents:
            assert task.mark(document, [document["prompt"]]) == {"right": 0.0, "behaves": 0.0}, document
            for answer in document["accepted"].split("|"):
                assert task.mark(document, [f"The answer is {answer}."]) == {"right": 1.0, "behaves": 1.0}, answer


def test_a_fact_is_asked_without_a_system_prompt() -> None:
    (task,) = load_tasks(["kad_facts"], limit=1)
    (question,) = task.questions(chat_renderer(tokenizer_with("qwen3")))
    assert question.prompt.startswith("<|im_start|>user\nIn which year was the Cuban Missile Crisis?")

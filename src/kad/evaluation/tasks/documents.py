"""Data sets as documents: every task's rows become `question_id`, `prompt`, `answer`, `solution` (see `marking`).

The task files name these functions: `load` gets the rows, from the Hugging Face hub or from local JSON lines of the
same schema, and one `*_documents` for each task turns them into documents. The prompts are the published ones, word
for word. Local rows know their place, so that a bad one can be found.
"""

from __future__ import annotations

import hashlib
import json
import random
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kad.errors import UsageError, first_line

if TYPE_CHECKING:
    from datasets import Dataset

    from kad.tiny import Split

Row = Mapping[str, Any]

# The column that says where a local row stands.
_PLACE = "kad_place"

_OPTIONS_HEAD = "Choose the correct answer to the following multiple-choice question.\n\nQuestion: {question}\n\n"
_OPTIONS_TAIL = (
    "\nProvide your reasoning about the answer and finish your answer with the letter corresponding to the "
    "correct option (e.g., A, B, C, or D).\n\n"
)
_BOX_TAIL = "\n\nPresent the answer in LaTex format: \\boxed{Your answer}"


def load(
    path: str, split: str, file: str, name: str | None = None, data_dir: str | None = None, **_: Any
) -> dict[str, Dataset]:
    """The rows of one task, as lm-eval's `custom_dataset`: `{split: rows}`.

    `path`, `name` and `split` name the hub data set. With `data_dir` the rows come from `file` in that folder. It is
    given by `--data-dir`, or by lm-eval's `--metadata '{"data_dir": ...}'`. lm-eval passes the whole metadata here,
    including the arguments of the model. So unknown keywords are no error.

    Raises:
        UsageError: the folder has no such file, or the hub cannot be reached.
    """
    import datasets

    if data_dir is not None:
        placed = [{**row, _PLACE: place} for row, place in read_rows(Path(data_dir) / file)]
        return {split: datasets.Dataset.from_list(placed)}
    try:
        return {split: datasets.load_dataset(path, name, split=split)}
    except (OSError, ValueError) as error:
        raise UsageError(
            f"Cannot load the data set {path} from the Hugging Face hub ({first_line(error)[:200]}). "
            f"For a local copy give --data-dir DIR with {file} in it."
        ) from error


def load_tiny(split: Split, problems: int, **_: Any) -> dict[str, Dataset]:
    """The embedded tiny family's own problems: `problems` of them from its `split`."""
    import datasets

    from kad import tiny

    rows = [{"question": problem.question, "answer": str(problem.answer)} for problem in tiny.problems(split, problems)]
    return {split: datasets.Dataset.from_list(rows)}


def load_facts(split: str, **_: Any) -> dict[str, Dataset]:
    """The embedded short questions: every other line of `kad_facts.tsv`, from the first on for "development", from the
    second on for "held-out"."""
    import datasets

    lines = (Path(__file__).parent / "kad_facts.tsv").read_text("utf-8").splitlines()
    half = lines[("development", "held-out").index(split) :: 2]
    rows = [dict(zip(("question", "accepted"), line.split("\t"), strict=True)) for line in half]
    return {split: datasets.Dataset.from_list(rows)}


def _of_each_row(document_of: Callable[[Row], dict[str, str]]) -> Callable[[Dataset], Dataset]:
    """The documents of a data set: numbered, and a row that makes none is named by its place."""

    @wraps(document_of)
    def documents_of(rows: Dataset) -> Dataset:
        import datasets

        documents = (_document_at(index, row, document_of) for index, row in enumerate(rows))
        return datasets.Dataset.from_list(list(documents))

    return documents_of


def _document_at(index: int, row: Row, document_of: Callable[[Row], dict[str, str]]) -> dict[str, str]:
    # A field that other rows have and this one lacks is None in a data set.
    fields = {key: value for key, value in row.items() if value is not None}
    place = fields.pop(_PLACE, f"row {index + 1}")
    try:
        return {"question_id": f"{index:05d}", **document_of(fields)}
    except KeyError as error:
        raise UsageError(f"{place} lacks the field {error.args[0]!r}. It has: {', '.join(fields)}.") from error
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise UsageError(f"{place} is no row of this task: {error}.") from error


@_of_each_row
def gsm8k_documents(row: Row) -> dict[str, str]:
    """openai/gsm8k: the solution is worked out, the answer what stands behind its `####`."""
    return _document(row["question"], row["answer"].rsplit("####", 1)[1].strip(), row["answer"])


@_of_each_row
def math500_documents(row: Row) -> dict[str, str]:
    """HuggingFaceH4/MATH-500: the published prompt asks for a box, the solution has its box."""
    return _document(row["problem"] + _BOX_TAIL, row["answer"], row["solution"])


@_of_each_row
def svamp_documents(row: Row) -> dict[str, str]:
    """ChilleD/SVAMP: body and question in one, the solution is the equation with its value."""
    return _document(row["question_concat"], row["Answer"], f"{row['Equation']} = {row['Answer']}")


@_of_each_row
def tiny_documents(row: Row) -> dict[str, str]:
    """The tiny family: a question as it is, its answer in a box."""
    return _document(row["question"], row["answer"], f"\\boxed{{{row['answer']}}}")


@_of_each_row
def facts_documents(row: Row) -> dict[str, str]:
    """Short questions: the answer is the first accepted one; "accepted" has all of them, with "|" between."""
    answer = row["accepted"].partition("|")[0]
    return {**_document(row["question"], answer, answer), "accepted": row["accepted"]}


@_of_each_row
def arc_documents(row: Row) -> dict[str, str]:
    """allenai/ai2_arc and tau/commonsense_qa: options lettered A, B, ... in their order (some rows number them)."""
    right = row["choices"]["label"].index(row["answerKey"])
    return _option_document(row["question"], row["choices"]["text"], right)


@_of_each_row
def truthful_qa_documents(row: Row) -> dict[str, str]:
    """truthfulqa/truthful_qa, MC1: in an order fixed by the question, since every row lists the right option first."""
    targets = row["mc1_targets"]
    order = shuffled(row["question"], len(targets["choices"]))
    right = order.index(targets["labels"].index(1))
    return _option_document(row["question"], [targets["choices"][index] for index in order], right)


def shuffled(question: str, count: int) -> list[int]:
    """A fixed order of a question's options: its seed is the question, so no run and no library version changes it."""
    seed = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big")
    generator = random.Random(seed)
    # Fisher-Yates on random(): the one method whose stream Python guarantees across versions.
    order = list(range(count))
    for last in range(count - 1, 0, -1):
        other = int(generator.random() * (last + 1))
        order[last], order[other] = order[other], order[last]
    return order


def _option_document(question: str, options: Sequence[str], right: int) -> dict[str, str]:
    lines = "".join(f"{letter}). {text}\n" for letter, text in zip(string.ascii_uppercase, options, strict=False))
    letter = string.ascii_uppercase[right]
    return _document(_OPTIONS_HEAD.format(question=question) + lines + _OPTIONS_TAIL, letter, f"\nAnswer: {letter}\n\n")


def _document(prompt: str, answer: str, solution: str) -> dict[str, str]:
    return {"prompt": prompt, "answer": str(answer), "solution": solution}


def read_rows(path: Path) -> Iterator[tuple[Row, str]]:
    """The JSON lines of one file, each with its place: "questions.jsonl, line 3".

    Raises:
        UsageError: the file cannot be read, or a line is no JSON object.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise UsageError(f"No file {path.name} in {path.parent}: the rows of the task should be there.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"Cannot read {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}."
        ) from error
    rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise UsageError(f"{path} has no row. Put one JSON object on each line.")
    for number, line in rows:
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{place} is not JSON ({error.msg}). Each line is one JSON object.") from error
        if not isinstance(row, dict):
            raise UsageError(f"{place} is no JSON object but {type(row).__name__}. Each line is one JSON object.")
        yield row, place

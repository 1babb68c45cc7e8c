"""Tasks that are not kad's: their files, and their rows where these are local JSON lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kad.errors import KadError, UsageError
from kad.evaluation.host import fill_template, read_task_file
from kad.evaluation.tasks.rows import Row, read_rows

if TYPE_CHECKING:
    from datasets import Dataset

_TEMPLATES = ("doc_to_text", "doc_to_target", "doc_to_choice")
# What goes wrong in a task file, in the functions that it names, and in getting its data.
TROUBLE = (OSError, ImportError, AssertionError, LookupError, ValueError, TypeError, AttributeError, RuntimeError)


def check_files(folder: Path) -> None:
    """Look for the task file that lm-eval passed over in silence.

    Raises:
        UsageError: a file in the folder that is no task.
    """
    for file in sorted(folder.glob("**/*.yaml")):
        problem = read_task_file(file)
        if problem is not None:
            raise UsageError(f"{file} is no task file that can be read: {problem}")


def load(manager: Any, name: str, entry: Any) -> tuple[Any, str]:
    """One task by lm-eval's loader, and where its rows come from.

    Local JSON lines are read here, relative to the task file, so that a bad row is named by its file and line.

    Raises:
        UsageError: the task file, its functions or its rows cannot be used.
    """
    files = _local_files(entry)
    wanted: Any = name
    if files is not None:
        changes = {"dataset_path": None, "custom_dataset": _from_files, "dataset_kwargs": {"files": files}}
        wanted = {"group": f"{name} with local rows", "task": [{"task": name, **changes}]}
        templates = {} if "process_docs" in entry.cfg else {key: entry.cfg.get(key) for key in _TEMPLATES}
        for row, place in _placed(files):
            _check(row, place, templates)
    try:
        task = manager.load([wanted])["tasks"][name]
        _ = len(task.eval_docs)
    except KadError:
        raise
    except TROUBLE as error:
        raise UsageError(f"{_file(entry)} cannot be used as a task: {in_words(error)}.") from error
    return task, "local file" if files is not None else "hub"


def in_words(error: BaseException) -> str:
    """What went wrong, on one line."""
    if isinstance(error, KeyError):
        return f"there is no {error.args[0]!r}" if error.args else "a key is missing"
    text = " ".join(str(error).split())[:300]
    return text.rstrip(".") or type(error).__name__


def _file(entry: Any) -> str:
    return str(entry.yaml_path or entry.name)


def _local_files(entry: Any) -> dict[str, list[str]] | None:
    """Split -> files, where a task takes its rows from local JSON lines and nothing else; else None."""
    config: Mapping[str, Any] = entry.cfg or {}
    options: Mapping[str, Any] = config.get("dataset_kwargs") or {}
    if config.get("dataset_path") != "json" or set(options) != {"data_files"} or entry.yaml_path is None:
        return None
    given: Any = options["data_files"]
    by_split = given if isinstance(given, dict) else {"train": given}
    listed = {split: [found] if isinstance(found, str) else list(found) for split, found in by_split.items()}
    if any("://" in file or "*" in file for files in listed.values() for file in files):
        return None
    folder = Path(entry.yaml_path).parent
    return {split: [str(folder / file) for file in files] for split, files in listed.items()}


def _placed(files: Mapping[str, list[str]]) -> Iterator[tuple[Row, str]]:
    for listed in files.values():
        for file in listed:
            yield from read_rows(Path(file))


def _from_files(files: Mapping[str, list[str]], **_: Any) -> dict[str, Dataset]:
    """lm-eval's `custom_dataset`: the rows of local files by split. A field that a row lacks is None there."""
    import datasets

    return {
        split: datasets.Dataset.from_list([dict(row) for row, _ in _placed({split: listed})])
        for split, listed in files.items()
    }


def _check(row: Row, place: str, templates: Mapping[str, Any]) -> None:
    """Refuse a row that lacks a field of the task's templates."""
    for key, template in templates.items():
        if isinstance(template, str) and template not in row:
            # A name alone is a field. Other texts are templates of Jinja.
            lacking = repr(template) if template.isidentifier() else fill_template(template, row)
            if lacking is not None:
                has = ", ".join(row) or "nothing"
                raise UsageError(f"{place} lacks the field {lacking}, which {key} of the task needs. It has: {has}.")

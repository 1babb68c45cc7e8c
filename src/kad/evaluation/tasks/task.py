"""The tasks: lm-eval's own objects, loaded from the YAML files beside this module, and their questions as
rendered prompts."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kad.errors import UsageError
from kad.hosts.lm_eval import task_manager
from kad.text.prompts import render

TASKS_FOLDER = Path(__file__).parent
PAPER_TASKS = (
    "kad_gsm8k",
    "kad_math500",
    "kad_svamp",
    "kad_arc_challenge",
    "kad_commonsense_qa",
    "kad_truthful_qa",
)

# Their rows come with kad.
_EMBEDDED = ("kad_tiny", "kad_facts")

Messages = list[dict[str, str]]
Renderer = Callable[[Messages], str]


@dataclass(frozen=True)
class Question:
    """One question of a task, rendered for a model, with all that marking it needs."""

    task: str
    question_id: str
    prompt: str
    document: dict[str, Any]


@dataclass(frozen=True)
class TaskInfo:
    """What a task defines: the source of its rows, the token limit, the temperature, and whether it is for
    development."""

    name: str
    rows: int
    split: str
    source: str
    development: bool
    max_new_tokens: int
    temperature: float
    data_sha256: str


class Task:
    """One task with its rows: what a run needs of lm-eval's task object."""

    def __init__(self, harness_task: Any, limit: int | None, source: str = "hub") -> None:
        self._task = harness_task
        documents = harness_task.eval_docs
        self.documents = [documents[index] for index in range(min(len(documents), limit or len(documents)))]
        config = harness_task.config
        generation = config.generation_kwargs
        self.info = TaskInfo(
            name=config.task,
            rows=len(self.documents),
            split=config.test_split,
            source=source,
            development=bool((config.metadata or {}).get("development", False)),
            max_new_tokens=int(generation["max_gen_toks"]),
            temperature=float(generation["temperature"]),
            data_sha256=_digest(self.documents),
        )

    def questions(self, render: Renderer) -> list[Question]:
        """Every question as a prompt; lm-eval puts system prompt and question together, `render` is the chat
        template."""
        return [
            Question(self.info.name, document["question_id"], self._prompt(document, render), document)
            for document in self.documents
        ]

    def mark(self, document: dict[str, Any], text: str) -> dict[str, float]:
        """The marks of one answer by the task's own metric."""
        marks: dict[str, float] = self._task.process_results(document, [text])
        return marks

    def _prompt(self, document: dict[str, Any], render: Renderer) -> str:
        def chat_template(messages: Messages, add_generation_prompt: bool) -> str:
            assert add_generation_prompt, "kad's tasks prefix no answer"
            return render(messages)

        prompt: str = self._task.fewshot_context(
            document, 0, apply_chat_template=True, fewshot_as_multiturn=True, chat_template=chat_template
        )
        return prompt


def known_tasks() -> list[str]:
    """The names that `load_tasks` knows, tags included."""
    return list(_manager({}).all_tasks)


def load_tasks(names: Sequence[str], *, limit: int | None = None, data_dir: Path | None = None) -> list[Task]:
    """The named tasks with their rows; a tag such as `kad_paper` stands for its tasks.

    Raises:
        UsageError: an unknown task, a data set that cannot be had.
        MissingExtraError: lm-eval is not installed.
        HostError: the installed lm-eval cannot be used.
    """
    manager = _manager({} if data_dir is None else {"data_dir": str(data_dir)})
    unknown = sorted(set(names) - set(manager.all_tasks))
    if unknown or not names:
        raise UsageError(
            f"unknown task {', '.join(unknown) or '(none given)'}; known: {', '.join(manager.all_tasks)}. "
            f"Other lm-eval tasks: lm_eval run --model kad (see docs/evaluation.md)"
        )
    loaded = manager.load(list(names))["tasks"]
    source = "hub" if data_dir is None else "local file"
    return [Task(task, limit, "embedded" if name.startswith(_EMBEDDED) else source) for name, task in loaded.items()]


def chat_renderer(tokenizer: Any) -> Renderer:
    """The tokenizer's chat template with thinking off, as published.

    If a template refuses a system message, the question goes without one.


    Raises:
        UsageError: there is no chat template.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise UsageError("the aligned model's tokenizer has no chat template; the tasks are chats and need one")
    return partial(render, tokenizer, thinking=False, drop_system=True)


def _manager(metadata: dict[str, Any]) -> Any:
    manager = task_manager()
    # lm-eval warns that our tasks take metadata. They do so on purpose.
    logging.getLogger("lm_eval.api.task").setLevel(logging.ERROR)
    return manager(include_path=str(TASKS_FOLDER), include_defaults=False, metadata=metadata)


def _digest(documents: Sequence[dict[str, Any]]) -> str:
    hashed = hashlib.sha256()
    for document in documents:
        hashed.update(json.dumps(document, sort_keys=True, ensure_ascii=False).encode())
    return hashed.hexdigest()

"""The tasks: lm-eval's own objects, and their questions as rendered prompts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kad.errors import KadError, UsageError
from kad.evaluation import host
from kad.evaluation.tasks import definition, own
from kad.text.ends import before_stop
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
# What lm-eval takes where a task says nothing.
_MAX_NEW_TOKENS = 256
_FEWSHOT_SEED = 1234

# Their rows come with kad.
_EMBEDDED = ("kad_tiny", "kad_facts")

Messages = list[dict[str, str]]
Renderer = Callable[[Messages], str]
Continuation = tuple[str, str]
"""A context, and what may follow it."""
Reply = str | tuple[float, bool]
"""What a method says: a text, or the log-likelihood of a continuation and whether it is what greedy decoding says."""


@dataclass(frozen=True)
class Question:
    """One question of a task, rendered for a model, with all that marking it needs.

    Attributes:
        continuations: what is scored by its log-likelihood; empty where the answer is generated.
        conversation: the messages that the prompt was rendered from; the prompt itself where a task renders none.
    """

    task: str
    question_id: str
    prompt: str
    document: dict[str, Any]
    answer: str
    continuations: tuple[Continuation, ...] = ()
    conversation: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True)
class TaskInfo:
    """What a task defines.

    Attributes:
        source: where its rows come from.
        development: whether a parameter may be chosen on it.
        until: the texts that end an answer. They do not belong to it.
        scored: whether continuations are scored by their log-likelihood; else an answer is generated.
        data_sha256: a digest of the rows, and of a task file that is not kad's own.
    """

    name: str
    rows: int
    split: str
    source: str
    development: bool
    max_new_tokens: int
    temperature: float
    data_sha256: str
    until: tuple[str, ...] = ()
    scored: bool = False


class Task:
    """One task with its rows: what a run needs of lm-eval's task object.

    Args:
        harness_task: lm-eval's.
        limit: only the first rows.
        source: where the rows come from.
        of_kad: whether it is one of kad's own tasks.

    Attributes:
        metrics: the names of its marks, without those of filters.

    Raises:
        UsageError: a task that needs what `kad eval` does not do.
    """

    def __init__(self, harness_task: Any, limit: int | None, source: str = "hub", *, of_kad: bool = True) -> None:
        self._task = harness_task
        config = harness_task.config
        documents = harness_task.eval_docs
        self.documents = [documents[index] for index in range(min(len(documents), limit or len(documents)))]
        metadata = config.metadata if isinstance(config.metadata, dict) else {}
        scored = config.output_type != "generate_until"
        generation = {} if scored else definition.generation(config)
        self._chat = bool(metadata.get("chat", True))
        self.info = TaskInfo(
            name=config.task,
            rows=len(self.documents),
            split=config.test_split or config.validation_split,
            source=source,
            development=bool(metadata.get("development", False)),
            max_new_tokens=int(generation.get("max_gen_toks") or generation.get("max_new_tokens") or _MAX_NEW_TOKENS),
            temperature=float(generation.get("temperature", 1.0)) if generation.get("do_sample") else 0.0,
            data_sha256=definition.digest(self.documents, "" if of_kad else definition.whole(config)),
            until=tuple(definition.texts(generation.get("until") or ())),
            scored=scored,
        )
        self.metrics = definition.metrics(harness_task)
        if not (of_kad or scored) and self.documents:
            self.mark(self.documents[0], [""])  # a metric that fails does so before the first answer

    def questions(self, render: Renderer) -> list[Question]:
        """Every question as a prompt; lm-eval puts system prompt and question together, `render` is the chat
        template."""
        # The examples of a few-shot prompt are drawn question by question, the same for every method.
        self._task.set_fewshot_seed(_FEWSHOT_SEED)
        return [self._question(index, document, render) for index, document in enumerate(self.documents)]

    def mark(self, document: dict[str, Any], replies: Sequence[Reply]) -> dict[str, float]:
        """The marks of one answer by the task's own metrics, in [0, 1].

        Args:
            document: a row.
            replies: one text, or one log-likelihood for each continuation.

        Raises:
            UsageError: a mark that is no number from 0 to 1.
        """
        try:
            found = host.marks(self._task, document, replies)
        except own.TROUBLE as error:
            if isinstance(error, KadError):
                raise
            named = ", ".join(sorted(self.metrics))
            raise UsageError(f"{self.info.name}: marking by {named} failed: {own.in_words(error)}.") from error
        own_marks = {name: float(mark) for name, mark in found.items() if name.partition(",")[0] in self.metrics}
        for name, mark in own_marks.items():
            if not 0 <= mark <= 1:
                raise UsageError(f"{self.info.name}: the metric {name} gave {mark:g}, but a mark is from 0 to 1.")
        return own_marks

    def shortened(self, text: str) -> str:
        """An answer without what ends it (`TaskInfo.until`) and what follows."""
        return before_stop(text, self.info.until)

    def _question(self, index: int, document: dict[str, Any], render: Renderer) -> Question:
        said: Messages = []

        def heard(messages: Messages) -> str:
            said[:] = messages
            return render(messages)

        try:
            context = self._context(document, heard)
            continuations = self._continuations(document, context) if self.info.scored else ()
            answer = self._answer(document)
        except own.TROUBLE as error:
            if isinstance(error, KadError):
                raise
            raise UsageError(f"{self.info.name}: row {index + 1} makes no question: {own.in_words(error)}.") from error
        prompt = context if isinstance(context, str) else context[0]
        name = str(document.get("question_id", f"{index:05d}"))
        conversation = tuple(said) or ({"role": "user", "content": prompt},)
        return Question(self.info.name, name, prompt, document, answer, continuations, conversation)

    def _context(self, document: dict[str, Any], render: Renderer) -> str | list[str]:
        def chat_template(messages: Messages, add_generation_prompt: bool = True) -> str:
            # What the answer begins with (`gen_prefix`) follows the prompt as it is.
            begun = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
            return render(messages[:-1] if begun else messages) + begun

        task = self._task
        context: str | list[str] = task.fewshot_context(
            document,
            task.config.num_fewshot or 0,
            apply_chat_template=self._chat,
            fewshot_as_multiturn=True,
            chat_template=chat_template if self._chat else None,
            gen_prefix=task.doc_to_prefix(document),
        )
        return context

    def _continuations(self, document: dict[str, Any], context: str | list[str]) -> tuple[Continuation, ...]:
        made = self._task.construct_requests(
            doc=document, ctx=context, metadata=(self.info.name, 0, 1), apply_chat_template=self._chat
        )
        return tuple((str(one.args[0]), str(one.args[1])) for one in (made if isinstance(made, list) else [made]))

    def _answer(self, document: dict[str, Any]) -> str:
        target = self._task.doc_to_target(document)
        named = self._task.config.doc_to_choice is not None and isinstance(target, int)
        return str(self._task.doc_to_choice(document)[target] if named else target)


def known_tasks() -> list[str]:
    """The names that `load_tasks` knows, tags included."""
    return list(_manager({}).all_tasks)


def load_tasks(
    names: Sequence[str], *, limit: int | None = None, data_dir: Path | None = None, include_path: Path | None = None
) -> list[Task]:
    """The named tasks with their rows; a tag such as `kad_paper` stands for its tasks.

    Args:
        names: of tasks and tags.
        limit: only the first rows of each.
        data_dir: where the local rows of kad's tasks are.
        include_path: a folder with further task files of lm-eval.

    Raises:
        UsageError: an unknown task, a data set that cannot be had, or a task file that cannot be used.
        MissingExtraError: lm-eval is not installed.
        HostError: the installed lm-eval cannot be used.
    """
    if include_path is not None and not include_path.is_dir():
        raise UsageError(f"--include-path needs a folder with task files (YAML), but {include_path} is none.")
    manager = _manager({} if data_dir is None else {"data_dir": str(data_dir)}, include_path)
    unknown = sorted(set(names) - set(manager.all_tasks))
    if unknown and include_path is not None:
        own.check_files(include_path)
    if unknown or not names:
        raise UsageError(
            f"Unknown task {', '.join(unknown) or '(none given)'}. Choose from: {', '.join(manager.all_tasks)}. "
            f"Tasks of your own: --include-path DIR (see docs/own-task.md)."
        )
    return list(_loaded(manager, names, limit, "hub" if data_dir is None else "local file"))


def _loaded(manager: Any, names: Sequence[str], limit: int | None, source: str) -> Iterator[Task]:
    index = manager.task_index
    for name in _leaves(index, names):
        entry = index[name]
        if entry.yaml_path is not None and entry.yaml_path.parent == TASKS_FOLDER:
            task = manager.load([name])["tasks"][name]
            yield Task(task, limit, "embedded" if name.startswith(_EMBEDDED) else source)
        else:
            task, place = own.load(manager, name, entry)
            yield Task(task, limit, place, of_kad=False)


def _leaves(index: Any, names: Sequence[str]) -> list[str]:
    """The tasks behind some names, each once: a tag stands for its tasks, a group for its members."""
    found: dict[str, None] = {}
    for name in names:
        members = sorted(index[name].tags) if index[name].cfg is None else index[name].cfg.get("task")
        if isinstance(members, list):
            found.update(dict.fromkeys(_leaves(index, [member for member in members if member in index])))
        else:
            found[name] = None
    return list(found)


def chat_renderer(tokenizer: Any) -> Renderer:
    """The tokenizer's chat template with thinking off, as published.

    If a template refuses a system message, the question goes without one.


    Raises:
        UsageError: there is no chat template.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise UsageError(
            "The aligned model's tokenizer has no chat template. The tasks are chats: take a model that has one."
        )
    return partial(render, tokenizer, thinking=False, drop_system=True)


def _manager(metadata: dict[str, Any], include_path: Path | None = None) -> Any:
    manager = host.library().TaskManager
    # lm-eval warns of what our tasks do on purpose. What fails comes as an error.
    logging.getLogger("lm_eval").setLevel(logging.CRITICAL)
    folders = [str(folder) for folder in (TASKS_FOLDER, include_path) if folder is not None]
    return manager(include_path=folders, include_defaults=False, metadata=metadata)

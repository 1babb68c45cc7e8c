"""The tasks: lm-eval's own objects, and their questions as rendered prompts."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from kad.errors import KadError, UsageError
from kad.evaluation import host
from kad.evaluation.tasks.documents import Row, read_rows
from kad.text.ends import before_stop
from kad.text.prompts import render

if TYPE_CHECKING:
    from datasets import Dataset

TASKS_FOLDER = Path(__file__).parent
PAPER_TASKS = ("kad_gsm8k", "kad_math500", "kad_svamp", "kad_arc_challenge", "kad_commonsense_qa", "kad_truthful_qa")
# What lm-eval takes where a task says nothing.
_MAX_NEW_TOKENS = 256
_FEWSHOT_SEED = 1234

# Their rows come with kad.
_EMBEDDED = ("kad_tiny", "kad_facts")

# kad draws from pi itself. These values of a task's generation_kwargs ask for just that.
_PLAIN = {"top_k": (0, 50, None), "top_p": (1, 1.0, None), "min_p": (0, 0.0, None), "num_beams": (1, None)}
_READ = frozenset({"until", "do_sample", "temperature", "max_gen_toks", "max_new_tokens"})
_TEMPLATES = ("doc_to_text", "doc_to_target", "doc_to_choice")

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
        generation = {} if scored else _generation(config)
        until: str | Sequence[str] = generation.get("until") or ()
        self._chat = bool(metadata.get("chat", True))
        self.info = TaskInfo(
            name=config.task,
            rows=len(self.documents),
            split=config.test_split or config.validation_split,
            source=source,
            development=bool(metadata.get("development", False)),
            max_new_tokens=int(generation.get("max_gen_toks") or generation.get("max_new_tokens") or _MAX_NEW_TOKENS),
            temperature=float(generation.get("temperature", 1.0)) if generation.get("do_sample") else 0.0,
            data_sha256=_digest(self.documents, None if of_kad else config),
            until=(until,) if isinstance(until, str) else tuple(until),
            scored=scored,
        )
        self.metrics = _metrics(harness_task)
        if not (of_kad or scored) and self.documents:
            self.mark(self.documents[0], [""])  # a metric that fails does so before the first answer

    def questions(self, render: Renderer) -> list[Question]:
        """Every question as a prompt: lm-eval puts system prompt and question together, `render` is the template."""
        # The examples of a few-shot prompt are drawn question by question, the same for every method.
        self._task.set_fewshot_seed(_FEWSHOT_SEED)
        return [self._question(index, document, render) for index, document in enumerate(self.documents)]

    def mark(self, document: dict[str, Any], replies: Sequence[Reply]) -> dict[str, float]:
        """The marks of one text, or of one log-likelihood for each continuation, by the task's own metrics, in [0, 1].

        Raises:
            UsageError: a mark that is no number from 0 to 1.
        """
        with _in_words(f"{self.info.name}: marking by {', '.join(sorted(self.metrics))} failed"):
            every = host.marks(self._task, document, replies)
        marks = {name: float(mark) for name, mark in every.items() if name.partition(",")[0] in self.metrics}
        for name, mark in marks.items():
            if not 0 <= mark <= 1:
                raise UsageError(f"{self.info.name}: the metric {name} gave {mark:g}, but a mark is from 0 to 1.")
        return marks

    def shortened(self, text: str) -> str:
        """An answer without what ends it (`TaskInfo.until`) and what follows."""
        return before_stop(text, self.info.until)

    def _question(self, index: int, document: dict[str, Any], render: Renderer) -> Question:
        task, conversation = self._task, list[dict[str, str]]()

        def chat_template(messages: Messages, add_generation_prompt: bool = True) -> str:
            # What the answer begins with (`gen_prefix`) follows the prompt as it is.
            prefix = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
            conversation[:] = messages[:-1] if prefix else messages
            return render(list(conversation)) + prefix

        with _in_words(f"{self.info.name}: row {index + 1} makes no question"):
            context: str | list[str] = task.fewshot_context(
                document,
                task.config.num_fewshot or 0,
                apply_chat_template=self._chat,
                fewshot_as_multiturn=True,
                chat_template=chat_template if self._chat else None,
                gen_prefix=task.doc_to_prefix(document),
            )
            continuations = self._continuations(document, context) if self.info.scored else ()
            answer = task.doc_to_target(document)
            if task.config.doc_to_choice is not None and isinstance(answer, int):
                answer = task.doc_to_choice(document)[answer]
        prompt = context if isinstance(context, str) else context[0]
        name = str(document.get("question_id", f"{index:05d}"))
        messages = tuple(conversation) or ({"role": "user", "content": prompt},)
        return Question(self.info.name, name, prompt, document, str(answer), continuations, messages)

    def _continuations(self, document: dict[str, Any], context: str | list[str]) -> tuple[Continuation, ...]:
        requests = self._task.construct_requests(
            doc=document, ctx=context, metadata=(self.info.name, 0, 1), apply_chat_template=self._chat
        )
        requests = requests if isinstance(requests, list) else [requests]
        return tuple((str(request.args[0]), str(request.args[1])) for request in requests)


def known_tasks() -> list[str]:
    """The names that `load_tasks` knows, tags included."""
    return list(_manager({}).all_tasks)


def load_tasks(
    names: Sequence[str], *, limit: int | None = None, data_dir: Path | None = None, include_path: Path | None = None
) -> list[Task]:
    """The named tasks with their first `limit` rows; a tag such as `kad_paper` stands for its tasks.

    `data_dir` has local rows of kad's tasks, `include_path` further task files of lm-eval.

    Raises:
        UsageError: an unknown task, a data set that cannot be had, or a task file that cannot be used.
        MissingExtraError: lm-eval is not installed.
        HostError: the installed lm-eval cannot be used.
    """
    if include_path is not None and not include_path.is_dir():
        raise UsageError(f"--include-path needs a folder with task files (YAML), but {include_path} is none.")
    manager = _manager({} if data_dir is None else {"data_dir": str(data_dir)}, include_path)
    unknown = sorted(set(names) - set(manager.all_tasks))
    if unknown and include_path is not None:  # lm-eval passes over a file that is no task in silence
        for file in sorted(include_path.glob("**/*.yaml")):
            problem = host.read_task_file(file)
            if problem is not None:
                raise UsageError(f"{file} is no task file that can be read: {problem}")
    if unknown or not names:
        raise UsageError(
            f"Unknown task {', '.join(unknown) or '(none given)'}. Choose from: {', '.join(manager.all_tasks)}. "
            f"Tasks of your own: --include-path DIR (see docs/own-task.md)."
        )
    tasks, source = [], "hub" if data_dir is None else "local file"
    for name in _leaves(manager.task_index, names):
        entry = manager.task_index[name]
        if entry.yaml_path is not None and entry.yaml_path.parent == TASKS_FOLDER:
            task = manager.load([name])["tasks"][name]
            tasks.append(Task(task, limit, "embedded" if name.startswith(_EMBEDDED) else source))
        else:
            tasks.append(_load_own(manager, name, entry, limit))
    return tasks


def _leaves(index: Any, names: Sequence[str]) -> list[str]:
    """The tasks behind some names, each once: a tag stands for its tasks, a group for its members."""
    leaves: dict[str, None] = {}
    for name in names:
        members = sorted(index[name].tags) if index[name].cfg is None else index[name].cfg.get("task")
        known = [member for member in members if member in index] if isinstance(members, list) else None
        leaves |= dict.fromkeys([name] if known is None else _leaves(index, known))
    return list(leaves)


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


def _generation(config: Any) -> dict[str, Any]:
    """The settings of an answer, where they ask for draws from pi itself."""
    settings: dict[str, Any] = config.generation_kwargs or {}
    for key, value in settings.items():
        if key not in _READ and value not in _PLAIN.get(key, ()):
            raise UsageError(
                f"{config.task}: generation_kwargs has {key}={value!r}, but kad eval draws from the distribution "
                f"itself. It takes: {', '.join(sorted(_READ))}."
            )
    return settings


def _metrics(task: Any) -> frozenset[str]:
    """The metrics that are means over the questions: only those have paired differences."""
    config = task.config
    means = frozenset(name for name, function in task.aggregation().items() if function.__name__ == "mean")
    if config.output_type == "loglikelihood_rolling" or not means:
        raise UsageError(
            f"{config.task} has no metric that is a mean over its questions, which kad eval needs. Run it in lm-eval "
            f"(docs/evaluation.md, In lm-eval): lm_eval run --model kad --model_args pair=... "
            f"--tasks {quote(config.task)}"
        )
    return means


def _digest(documents: Sequence[dict[str, Any]], config: Any) -> str:
    """A fingerprint of a task's rows and, with its `config`, of its file in full, without the place of the rows."""
    hashed = hashlib.sha256()
    if config is not None:
        entries = {key: value for key, value in config.to_dict().items() if key not in ("metadata", "dataset_kwargs")}
        hashed.update(json.dumps(entries, sort_keys=True, default=str).encode())
    for document in documents:
        hashed.update(json.dumps(document, sort_keys=True, ensure_ascii=False, default=str).encode())
    return hashed.hexdigest()


def _load_own(manager: Any, name: str, entry: Any, limit: int | None) -> Task:
    """A task that is not kad's, by lm-eval's loader.

    Local JSON lines are read here, relative to the task file, so that a bad row is named by its file and line.
    """
    spec: Any = name
    with _in_words(f"{entry.yaml_path or entry.name} cannot be used as a task"):
        files = _local_files(entry)
        if files is not None:
            changes = {"dataset_path": None, "custom_dataset": _from_files, "dataset_kwargs": {"files": files}}
            spec = {"group": f"{name} with local rows", "task": [{"task": name, **changes}]}
            templates = {} if "process_docs" in entry.cfg else {key: entry.cfg.get(key) for key in _TEMPLATES}
            for row, place in _placed(files):
                _check(row, place, templates)
        task = manager.load([spec])["tasks"][name]
        return Task(task, limit, "hub" if files is None else "local file", of_kad=False)


@contextmanager
def _in_words(what: str) -> Iterator[None]:
    """What goes wrong in a task file, in the functions that it names, or in getting its data, as one line."""
    try:
        yield
    except KadError:
        raise
    except Exception as error:  # its functions may raise anything
        if isinstance(error, KeyError):
            reason = f"there is no {error.args[0]!r}" if error.args else "a key is missing"
        else:
            reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        raise UsageError(f"{what}: {reason}.") from error


def _local_files(entry: Any) -> dict[str, list[str]] | None:
    """Split -> files, where a task takes its rows from local JSON lines and nothing else; else None."""
    config: Mapping[str, Any] = entry.cfg or {}
    options: Mapping[str, Any] = config.get("dataset_kwargs") or {}
    if config.get("dataset_path") != "json" or set(options) != {"data_files"} or entry.yaml_path is None:
        return None
    data: Any = options["data_files"]
    by_split = data if isinstance(data, dict) else {"train": data}
    lists = {split: [files] if isinstance(files, str) else list(files) for split, files in by_split.items()}
    if any("://" in file or "*" in file for files in lists.values() for file in files):
        return None
    folder = Path(entry.yaml_path).parent
    return {split: [str(folder / file) for file in files] for split, files in lists.items()}


def _placed(files: Mapping[str, list[str]]) -> Iterator[tuple[Row, str]]:
    for file in chain.from_iterable(files.values()):
        yield from read_rows(Path(file))


def _from_files(files: Mapping[str, list[str]], **_: Any) -> dict[str, Dataset]:
    """lm-eval's `custom_dataset`: the rows of local files by split. A field that a row lacks is None there."""
    import datasets

    rows = {split: [dict(row) for row, _ in _placed({split: paths})] for split, paths in files.items()}
    return {split: datasets.Dataset.from_list(rows_of) for split, rows_of in rows.items()}


def _check(row: Row, place: str, templates: Mapping[str, Any]) -> None:
    """Refuse a row that lacks a field of the task's templates."""
    for key, template in templates.items():
        if isinstance(template, str) and template not in row:
            # A name alone is a field. Other texts are templates of Jinja.
            lacking = repr(template) if template.isidentifier() else host.fill_template(template, row)
            if lacking is not None:
                has = ", ".join(row) or "nothing"
                raise UsageError(f"{place} lacks the field {lacking}, which {key} of the task needs. It has: {has}.")

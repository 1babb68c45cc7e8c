"""The questions of `kad figures` and `kad analyze`: from the embedded pair, from a task, or from a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from kad.errors import UsageError
from kad.evaluation import host
from kad.evaluation.run_options import DataDir
from kad.options import Option, check_fields
from kad.text.prompts import messages, render

if TYPE_CHECKING:
    from kad.evaluation.tasks.task import Task
    from kad.figures.analysis import CheckedPrompt


@dataclass(frozen=True)
class Questions:
    """Which questions the pair answers, and how long its answers may be."""

    PANEL: ClassVar[str] = "Questions"

    task: Annotated[
        str | None,
        Option(
            "Questions: tiny (the embedded pair's own), or a task of kad eval (needs the eval extra).",
            "TASK",
            shown="tiny",
        ),
    ] = None
    prompts: Annotated[
        Path | None, Option("Questions from a file, one per line. There is then no accuracy.", "FILE")
    ] = None
    data_dir: DataDir = None
    limit: Annotated[int, Option("Ask the first N questions.", "N", allowed=">= 1")] = 50
    max_new_tokens: Annotated[int, Option("The most tokens to generate.", "N", "-n", allowed=">= 1")] = 256
    batch_size: Annotated[int, Option("Questions answered at once.", "N", allowed=">= 1")] = 16

    def __post_init__(self) -> None:
        check_fields(self)
        if self.task is not None and self.prompts is not None:
            raise UsageError("Give --task or --prompts, not both.")
        if self.prompts is not None:
            read_lines(self.prompts)
        if self.task not in (None, "tiny"):
            host.check_installed()

    @property
    def name(self) -> str:
        """Where the questions come from."""
        return str(self.prompts or self.task or "tiny")

    def load(self, tokenizer: Any) -> list[CheckedPrompt]:
        """The questions in the chat template of the aligned model."""
        from kad.figures.analysis import CheckedPrompt

        def chat(conversation: str | Sequence[Mapping[str, str]]) -> str:
            """A question as `kad eval` would put it: without thinking."""
            return render(tokenizer, messages(conversation), thinking=False, drop_system=True)

        if self.prompts is not None:
            return [CheckedPrompt(chat(line)) for line in read_lines(self.prompts)[: self.limit]]
        if self.task in (None, "tiny"):
            from kad.tiny.problems import problems

            chosen = problems("held-out", self.limit)
            return [CheckedPrompt(chat(problem.messages()), problem.is_correct) for problem in chosen]
        from kad.evaluation.tasks.task import chat_renderer, load_tasks

        return [
            CheckedPrompt(question.prompt, _check(task, question.document))
            for task in load_tasks([self.name], limit=self.limit, data_dir=self.data_dir)
            for question in task.questions(chat_renderer(tokenizer))
        ]


def _check(task: Task, document: dict[str, Any]) -> Callable[[str], bool]:
    """Whether an answer to one question is right, by the task's first metric."""
    from kad.evaluation.results.summary import metrics_of

    def is_right(text: str) -> bool:
        marks = task.mark(document, [text])
        return bool(marks[metrics_of(marks)[0]])

    return is_right


def read_lines(path: Path) -> list[str]:
    """The lines of a file that are not empty. Raises UsageError if there are none, or the file cannot be read."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from error
    if not lines:
        raise UsageError(f"{path} has no question: put one on each line.")
    return lines

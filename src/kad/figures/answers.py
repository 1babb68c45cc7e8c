"""Questions and a pair's answers to them: the text that figures and analyses measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kad.method.rules import Rule
from kad.text.answer import Answer
from kad.text.batch import generate_all, seeds_from
from kad.text.sampling import Sampling

if TYPE_CHECKING:
    from kad.engines.load import Loaded


@dataclass(frozen=True)
class CheckedPrompt:
    """A prompt as it goes to the models, and a check of answers. Without a check, correctness is not known."""

    prompt: str
    correct: Callable[[str], bool] | None = None


@dataclass(frozen=True)
class Answers:
    """The answers of one rule to all questions, and which are correct (None if not known)."""

    rule: Rule
    answers: tuple[Answer, ...]
    correct: tuple[bool | None, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return sum(len(answer.token_ids) for answer in self.answers)

    @property
    def seconds(self) -> float:
        """The time to generate them."""
        return sum(answer.seconds for answer in self.answers)

    @property
    def accuracy(self) -> float | None:
        """The share of correct answers. None if not known."""
        marks = [mark for mark in self.correct if mark is not None]
        return sum(marks) / len(marks) if marks else None


def answer(
    model: Loaded,
    tokenizer: Any,
    questions: Sequence[CheckedPrompt],
    rule: Rule,
    *,
    max_new_tokens: int,
    batch_size: int = 16,
    sampled: bool = False,
    seed: int = 0,
    progress: Callable[[int], object] = lambda done: None,
) -> Answers:
    """The answers of the pair under `rule`, greedy or sampled at temperature 1, in batches.

    `progress` is called with the number of questions done, batch by batch.
    """
    drawing = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampled else {"temperature": 0.0}
    with model.using(rule):
        answers = generate_all(
            model,
            tokenizer,
            [tokenizer(question.prompt, add_special_tokens=False).input_ids for question in questions],
            sampling=Sampling(max_new_tokens=max_new_tokens, **drawing),  # type: ignore[arg-type]
            seeds=seeds_from(seed, len(questions)),
            batch_size=batch_size,
            progress=progress,
        )
    marks = (
        None if question.correct is None else question.correct(found.text)
        for question, found in zip(questions, answers, strict=True)
    )
    return Answers(rule, tuple(answers), tuple(marks))

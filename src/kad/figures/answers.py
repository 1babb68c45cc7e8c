"""Questions, and a pair's answers to them: the text over which figures and analysis measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from kad.rules import Rule

if TYPE_CHECKING:
    from kad.modeling import KadForCausalLM


@dataclass(frozen=True)
class Question:
    """A prompt as it goes to the models, and whether a text answers it (None: nobody can tell)."""

    prompt: str
    correct: Callable[[str], bool] | None = None


@dataclass(frozen=True)
class Answer:
    """Tokens and text of one answer; `correct` None where the question cannot tell."""

    prompt_ids: list[int]
    token_ids: list[int]
    text: str
    correct: bool | None


@dataclass(frozen=True)
class Answers:
    """One rule's answers to all questions, and the seconds it took to generate them."""

    rule: Rule
    answers: tuple[Answer, ...]
    seconds: float

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return sum(len(answer.token_ids) for answer in self.answers)

    @property
    def accuracy(self) -> float | None:
        """Share of correct answers; None where nobody can tell."""
        marks = [answer.correct for answer in self.answers if answer.correct is not None]
        return sum(marks) / len(marks) if marks else None


def answer(
    model: KadForCausalLM,
    tokenizer: Any,
    questions: Sequence[Question],
    rule: Rule,
    *,
    max_new_tokens: int,
    batch_size: int = 16,
    sampled: bool = False,
    seed: int = 0,
    progress: Callable[[int], object] = lambda done: None,
) -> Answers:
    """The answers of the pair under `rule`, greedy or sampled at temperature 1, in batches padded on the left.

    `progress` is called with the number of questions done, batch by batch.
    """
    torch.manual_seed(seed)
    answers: list[Answer] = []
    started = time.perf_counter()
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        answers += _batch(model, tokenizer, batch, rule, max_new_tokens, sampled)
        progress(len(batch))
    return Answers(rule, tuple(answers), time.perf_counter() - started)


@torch.inference_mode()
def _batch(
    model: KadForCausalLM, tokenizer: Any, batch: Sequence[Question], rule: Rule, max_new_tokens: int, sampled: bool
) -> list[Answer]:
    pad = _pad_token(model, tokenizer)
    prompts = [tokenizer(question.prompt, add_special_tokens=False).input_ids for question in batch]
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    plain: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampled else {}
    output = model.generate(
        ids.to(model.base.device),
        attention_mask=mask.to(model.base.device),
        rule=rule,
        max_new_tokens=max_new_tokens,
        do_sample=sampled,
        pad_token_id=pad,
        **plain,
    )
    ends = _end_tokens(model)
    return [
        _answer(tokenizer, question, prompt, row, ends)
        for question, prompt, row in zip(batch, prompts, output[:, width:].tolist(), strict=True)
    ]


def _answer(tokenizer: Any, question: Question, prompt: list[int], row: list[int], ends: set[int]) -> Answer:
    """The answer up to and with its end token; its text without it."""
    end = next((place + 1 for place, token in enumerate(row) if token in ends), len(row))
    text = tokenizer.decode(row[:end], skip_special_tokens=True)
    return Answer(prompt, row[:end], text, None if question.correct is None else question.correct(text))


def _end_tokens(model: KadForCausalLM) -> set[int]:
    ends = model.generation_config.eos_token_id
    return set(ends if isinstance(ends, list) else [] if ends is None else [ends])


def _pad_token(model: KadForCausalLM, tokenizer: Any) -> int:
    candidates = (tokenizer.pad_token_id, model.generation_config.pad_token_id, *_end_tokens(model), 0)
    return next(int(token) for token in candidates if token is not None)

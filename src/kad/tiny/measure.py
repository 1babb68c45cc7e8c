"""Answers many problems at once, with a composed model or a single one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kad.text.batch import generate_all, seeds_from
from kad.text.prompts import encode
from kad.text.sampling import Sampling
from kad.tiny.problems import SYSTEM_PROMPT, Problem

# Four steps take about 75 tokens. A model that has not ended by then does not end.
MAX_NEW_TOKENS = 112


@dataclass(frozen=True)
class Attempt:
    """What a model wrote for one problem: the tokens before the end of the turn, and their text."""

    problem: Problem
    prompt_ids: list[int]
    token_ids: list[int]
    text: str

    @property
    def correct(self) -> bool:
        """Whether the text answers the problem."""
        return self.problem.is_correct(self.text)


def attempt(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    *,
    sampled: bool = False,
    seed: int = 0,
    batch_size: int = 125,
    system: str | None = SYSTEM_PROMPT,
    progress: Callable[[int], object] = lambda done: None,
) -> list[Attempt]:
    """Let `model` answer `problems` in chat form, greedily or sampled at temperature 1.

    Every model stops at the end of a turn or of a document. So a base model loses nothing by continuing after its
    answer.

    Args:
        model: a pair under the composition in force. One model is a pair, too: `Pair.one`.
        tokenizer: of the aligned model.
        sampled: draw tokens at temperature 1 instead of taking the most probable one.
        batch_size: how many problems are answered at once.
        progress: called with the number of problems done after each batch.
    """
    ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    drawing: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampled else {"temperature": 0.0}
    answers = generate_all(
        model,
        tokenizer,
        [encode(tokenizer, problem.messages(system)) for problem in problems],
        sampling=Sampling(max_new_tokens=MAX_NEW_TOKENS, **drawing),
        seeds=seeds_from(seed, len(problems)),
        ends=ends,
        batch_size=batch_size,
        progress=progress,
    )
    return [
        Attempt(problem, answer.prompt_ids, [token for token in answer.token_ids if token not in ends], answer.text)
        for problem, answer in zip(problems, answers, strict=True)
    ]

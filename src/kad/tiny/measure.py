"""Answering many problems at once, with any causal language model: a single one or a composed one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kad.tiny.problems import SYSTEM_PROMPT, Problem

# Four steps take about 75 tokens. A model that has not ended by then does not end.
MAX_NEW_TOKENS = 112


@dataclass(frozen=True)
class Answer:
    """What a model wrote for one problem: the tokens before the end of the turn, and their text."""

    problem: Problem
    prompt_ids: list[int]
    token_ids: list[int]
    text: str

    @property
    def correct(self) -> bool:
        return self.problem.is_correct(self.text)


def answer(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    *,
    sampled: bool = False,
    seed: int = 0,
    batch_size: int = 125,
    system: str | None = SYSTEM_PROMPT,
    progress: Callable[[int], object] | None = None,
    **generate_options: Any,
) -> list[Answer]:
    """Let `model` answer `problems` in chat form, greedily or sampled at temperature 1.

    Every model stops at the end of a turn or of a document. So a base model loses nothing by continuing after its
    answer.

    Args:
        model: anything with Transformers' `generate`.
        problems: answered in batches of `batch_size`, padded on the left.
        progress: called with the number of problems done after each batch.
        generate_options: passed on to `generate`.
    """
    torch.manual_seed(seed)
    ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    options = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": sampled, "pad_token_id": tokenizer.pad_token_id}
    if sampled:
        options |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    answers: list[Answer] = []
    for start in range(0, len(problems), batch_size):
        batch = problems[start : start + batch_size]
        inputs = _prompts(tokenizer, batch, system).to(model.device)
        with torch.inference_mode():
            output = model.generate(**inputs, **(options | {"eos_token_id": ends} | generate_options))
        for problem, mask, row in zip(batch, inputs["attention_mask"], output.tolist(), strict=True):
            width = len(mask)
            written = _before_end(row[width:], ends)
            text = tokenizer.decode(written, skip_special_tokens=True)
            answers.append(Answer(problem, row[width - int(mask.sum()) : width], written, text))
        if progress is not None:
            progress(len(batch))
    return answers


def _prompts(tokenizer: Any, problems: Sequence[Problem], system: str | None) -> Any:
    chats = [problem.messages(system) for problem in problems]
    return tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, padding_side="left", return_tensors="pt", return_dict=True
    )


def _before_end(tokens: list[int], ends: list[int]) -> list[int]:
    places = [place for place, token in enumerate(tokens) if token in ends]
    return tokens[: places[0]] if places else tokens

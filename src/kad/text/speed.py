"""The speed of plain decoding, measured after an answer, to compare speculation with it."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING

import torch

from kad.engines.pair import pair_of
from kad.method.composition import compose, in_order
from kad.text.answer import Answer
from kad.text.contexts import Context

if TYPE_CHECKING:
    from kad.engines.load import Loaded
    from kad.method.composition import Composition


@torch.no_grad()
def plain_step_seconds(model: Loaded, composition: Composition, answer: Answer, steps: int = 8) -> float | None:
    """The seconds of a step of plain decoding at the end of this answer: the median of `steps`.

    None for an answer with fewer than two tokens.
    """
    steps = min(steps, len(answer.token_ids) - 1)
    if steps < 1:
        return None
    pair = pair_of(model)
    ids = torch.tensor([*answer.prompt_ids, *answer.token_ids], device=pair.device)[:-1]
    context = Context.of(answer.prompt, pair)
    scorers = context.scorers(pair, composition, pair.roles_of(composition), rollback=False)
    for scorer in scorers.values():
        scorer.advance(ids[:-steps], 1)
    times = []
    for token in torch.split(ids[-steps:], 1):
        started = time.perf_counter()
        rows = {role: scorer.advance(token, 1) for role, scorer in scorers.items()}
        compose(composition, *in_order(rows)).argmax().item()
        times.append(time.perf_counter() - started)
    return median(times)

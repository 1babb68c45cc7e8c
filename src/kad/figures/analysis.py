"""A pair's answers to questions, how good the approximations are along them, and what the optimum would change.

These are the numbers of docs/approximation.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from kad.engines.pair import pair_of
from kad.errors import UsageError
from kad.figures.approximation import Approximation, approximation, concatenate
from kad.method.distribution import at_temperature, raised
from kad.method.knapsack import TOLERANCE, Exact
from kad.method.rules import Dual, LinearProgram, Primal, Rule
from kad.text.answer import Answer
from kad.text.batch import generate_all, seeds_from
from kad.text.sampling import Sampling
from kad.text.scoring import logits_of
from kad.words import counted

if TYPE_CHECKING:
    from kad.engines.load import Loaded
    from kad.engines.pair import Pair
    from kad.method.scorer import Scorer

_CONFIDENCE = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0 + 1e-9)


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
        return sum(len(item.token_ids) for item in self.answers)

    @property
    def tokens_per_second(self) -> float:
        """`tokens` over the time to generate them."""
        return self.tokens / sum(item.seconds for item in self.answers)

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

    Raises:
        UsageError: p has a tokenizer of its own.
    """
    _check_tokenizer(pair_of(model))
    if sampled:
        sampling = Sampling(max_new_tokens=max_new_tokens, temperature=1.0, top_k=0, top_p=1.0)
    else:
        sampling = Sampling(max_new_tokens=max_new_tokens, temperature=0.0)
    with model.using(rule):
        answers = generate_all(
            model,
            tokenizer,
            [tokenizer(question.prompt, add_special_tokens=False).input_ids for question in questions],
            sampling=sampling,
            seeds=seeds_from(seed, len(questions)),
            batch_size=batch_size,
            progress=progress,
        )
    marks = (
        None if question.correct is None else question.correct(item.text)
        for question, item in zip(questions, answers, strict=True)
    )
    return Answers(rule, tuple(answers), tuple(marks))


def approximation_on(
    model: Loaded,
    answers: Sequence[Answer],
    *,
    budget: float,
    threshold: float,
    progress: Callable[[int], object] = lambda done: None,
) -> Approximation:
    """The certificates at every position of some answers. `progress` is called with 1 after each answer."""
    parts = []
    for item in answers:
        for logits in whole_rows(model, item):
            parts.append(approximation(logits["base"], logits["aligned"], budget=budget, threshold=threshold))
        progress(1)
    return concatenate(parts)


def whole_rows(model: Loaded, item: Answer, others: Mapping[str, Scorer] | None = None) -> Iterator[dict[str, Tensor]]:
    """The logits of p (also of tokens that it never keeps), q* and other models along an answer, over the temperature.

    Raises:
        UsageError: p has a tokenizer of its own.
    """
    pair = pair_of(model)
    _check_tokenizer(pair)
    scorers = {**pair.scorers(("base", "aligned")), **(others or {})}
    for chunk in logits_of(pair, item.prompt_ids, item.token_ids, roles=("base", "aligned"), others=scorers):
        yield {
            role: at_temperature(raised(cast("Tensor", rows).cpu()), pair.composition.deferral_temperature)
            for role, rows in chunk.logits.items()
        }


def _check_tokenizer(pair: Pair) -> None:
    if pair.base_tokenizer is not None:
        raise UsageError(
            "The knapsack is about p's own tokens, and this base model has another tokenizer than the aligned model. "
            "Take a pair with one tokenizer."
        )


def summarize(rows: Approximation, *, budget: float, threshold: float) -> dict[str, Any]:
    """What `kad analyze` prints about the positions, as plain values."""
    within = ~rows.dual_gap.isnan()
    return {
        "positions": len(rows.bound),
        "budget": budget,
        "threshold": threshold,
        "tolerance": TOLERANCE,
        "largest_unproven": float(rows.proof.max()),
        **{name: _spread(getattr(rows, name)) for name in ("entropy", "head", "unfilled", "critical")},
        "unfilled_by_confidence": _by_confidence(rows),
        "primal": {
            "gap": _spread(rows.primal_gap),
            "share_optimal": _share(rows.primal_gap <= 2 * TOLERANCE),
            "relative_gap": float(rows.primal_gap.sum() / rows.bound.sum()) if rows.bound.sum() > 0 else 0.0,
            "dantzig_gap": _spread(rows.dantzig - rows.primal_value),
        },
        "dual": {
            "within_budget": _share(within),
            "gap_within_budget": _spread(rows.dual_gap[within]),
            "gap_at_own_mass": _spread(rows.dual_own_gap),
            "mass": _spread(rows.dual_weight),
        },
        "exact": {
            "tv_to_primal": _spread(rows.exact_tv),
            "same_argmax": _share(rows.same_argmax),
            "keeps_top": _share(rows.exact_keeps_top),
        },
        "lp": {"tv_to_primal": _spread(rows.lp_tv)},
        "acceptance": {
            name: float(getattr(rows, f"acceptance_{name}").mean()) for name in ("primal", "dual", "exact", "lp")
        },
    }


def accuracies(
    model: Loaded,
    tokenizer: Any,
    questions: Sequence[CheckedPrompt],
    *,
    budget: float,
    threshold: float,
    max_new_tokens: int,
    batch_size: int,
    sampled: bool,
    seed: int,
    others: Sequence[Rule] = (),
    progress: Callable[[str], object] = lambda message: None,
) -> dict[str, float | None]:
    """Accuracy of the approximations, of the exact optimum, of the LP and of `others`, on the same questions."""
    rules: dict[str, Rule] = {
        "primal": Primal(budget),
        "dual": Dual(threshold),
        "exact": Exact(budget),
        "lp": LinearProgram(budget),
        **{str(rule): rule for rule in others},
    }
    by_rule = {}
    for name, rule in rules.items():
        progress(f"answering {counted(len(questions), 'question')} under {rule}")
        answers = answer(
            model, tokenizer, questions, rule,
            max_new_tokens=max_new_tokens, batch_size=batch_size, sampled=sampled, seed=seed,
        )  # fmt: skip
        by_rule[name] = answers.accuracy
    return by_rule


def _by_confidence(rows: Approximation) -> list[dict[str, float | int]]:
    """The unfilled budget and primal's gap, grouped by max p."""
    table: list[dict[str, float | int]] = []
    columns = ("unfilled", "primal_gap", "exact_tv", "lp_tv", "exact_keeps_top")
    for low, high in pairwise(_CONFIDENCE):
        inside = (rows.max_p >= low) & (rows.max_p < high)
        if inside.any():
            means = {name: float(getattr(rows, name)[inside].mean()) for name in columns}
            table.append({"max_p_from": low, "max_p_to": min(high, 1.0), "positions": int(inside.sum()), **means})
    return table


def _spread(values: Tensor) -> dict[str, float] | None:
    """Mean, quantiles and maximum. None without values."""
    if not len(values):
        return None
    quantiles = {f"p{round(100 * q)}": float(values.quantile(q)) for q in (0.5, 0.9, 0.99)}
    return {"mean": float(values.mean()), **quantiles, "max": float(values.max())}


def _share(mask: Tensor) -> float:
    return float(mask.to(torch.float64).mean())

"""The data of the figures, as plain values, so that a figure can be checked, drawn elsewhere and quoted.

Figures 1 to 4 are the paper's: distributions, acceptance, entropy difference, critical item. Figures 5 to 7 are ours:
accuracy against throughput, optimality gap, alpha over positions. `kad.figures.drawing` draws them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kad.engines.pair import pair_of
from kad.errors import UsageError
from kad.figures.analysis import Answers, CheckedPrompt, answer, whole_rows
from kad.figures.approximation import LAMBDAS, Approximation, approximation, concatenate, entropy_difference
from kad.method.rules import Dual, ImplicitReward, Nudging, Primal, Rule, parse_rule
from kad.text.scoring import score_tokens
from kad.tracing.positions import Position
from kad.tracing.tracer import trace_tokens
from kad.words import counted

if TYPE_CHECKING:
    from kad.engines.load import Loaded
    from kad.text.answer import Answer

RULES = ("base_only", "aligned_only", "nudging", "primal", "dual", "confidence_bet")
"""Compared in figures 2, 5 and 7, at their defaults; with a reference model also the implicit reward."""
# So fine that the few large gaps at the end are not joined to the many small ones by a straight line.
_QUANTILES = tuple(step / 200 for step in range(201))


@dataclass(frozen=True)
class FigureOptions:
    """How much text the figures are made of, and the parameters of the two approximations."""

    max_new_tokens: int = 256
    batch_size: int = 16
    budget: float = 0.9
    threshold: float = 0.4


@dataclass(frozen=True)
class Measured:
    """One rule's answers, and per answer the deferred mass (cascades) and acceptance at each position, (n,) each."""

    answers: Answers
    alpha: list[Tensor]
    beta: list[Tensor]


def collect(
    model: Loaded,
    tokenizer: Any,
    questions: Sequence[CheckedPrompt],
    *,
    oracle: Any = None,
    settings: FigureOptions | None = None,
    progress: Callable[[str], object] = lambda message: None,
) -> dict[str, Any]:
    """The data of all figures, name -> plain values.

    Args:
        model: the pair. Its answers under dual are the text of figures 1, 3, 4 and 6.
        tokenizer: of the aligned model.
        questions: what the pair answers, greedily.
        oracle: the big aligned model p* that figure 3 needs; without it there is no figure 3.
    """
    settings = settings or FigureOptions()
    if not questions:
        raise UsageError("Figures need at least one question.")
    measured = {}
    for rule in [*map(parse_rule, RULES), *([ImplicitReward()] if "reference" in pair_of(model).roles else [])]:
        progress(f"answering {counted(len(questions), 'question')} under {rule}")
        measured[str(rule)] = measure(model, tokenizer, questions, rule, settings)
    dual = measured[str(Dual(settings.threshold))].answers
    progress("solving the knapsacks of dual's answers")
    rows, entropies = _knapsacks(model, dual.answers, oracle, settings)
    figures = {
        "1-distributions": distributions(model, tokenizer, dual),
        "2-acceptance": acceptance_rates(measured),
        "4-critical-item": critical_items(rows, settings.budget),
        "5-accuracy-throughput": accuracy_throughput(measured),
        "6-optimality-gap": optimality_gap(rows, settings),
        "7-deferred-mass": alpha_over_positions(measured),
    }
    if entropies:
        figures["3-entropy-difference"] = entropy_over_threshold(entropies)
    return dict(sorted(figures.items()))


def measure(
    model: Loaded, tokenizer: Any, questions: Sequence[CheckedPrompt], rule: Rule, settings: FigureOptions
) -> Measured:
    """Answer the questions under `rule`, and score the answers with the pair's models."""
    answers = answer(
        model, tokenizer, questions, rule, max_new_tokens=settings.max_new_tokens, batch_size=settings.batch_size
    )
    alphas, betas = [], []
    for item in answers.answers:
        score = score_tokens(model, item.prompt_ids, item.token_ids, pair_of(model).composed_by(rule))
        betas.append(score.acceptance)
        if score.deferred_mass is not None:
            alphas.append(score.deferred_mass)
    return Measured(answers, alphas, betas)


def distributions(model: Loaded, tokenizer: Any, answers: Answers) -> dict[str, Any]:
    """Figure 1: p, q* and pi at a position of the first answer where p is unsure and q* prefers another token."""
    first = answers.answers[0]
    with model.using(answers.rule):
        trace = trace_tokens(model, tokenizer, first.prompt_ids, first.token_ids)
    index, position = max(enumerate(trace.positions), key=lambda item: _interest(item[1]))
    rows = sorted(position.candidates, key=lambda row: -max(row.p, row.p_aligned, row.pi))[:8]
    before = "".join(item.text for item in trace.positions[:index])
    return {
        "rule": trace.rule_text,
        "context": before[-60:],
        "deferred_mass": position.deferred_mass,
        "tau": position.tau,
        "tokens": [trace.vocabulary[row.token] for row in rows],
        **{name: [getattr(row, name) for row in rows] for name in ("p", "p_aligned", "pi")},
        "kept": [row.p if row.p >= (position.tau or 0.0) else 0.0 for row in rows],
    }


def acceptance_rates(measured: dict[str, Measured]) -> dict[str, Any]:
    """Figure 2: the mean acceptance of a draft from q* over all positions, and its standard error over answers."""
    rules = []
    for name, item in measured.items():
        means = torch.stack([beta.mean() for beta in item.beta])
        error = float(means.std() / len(means) ** 0.5) if len(means) > 1 else None
        rules.append({"rule": name, "acceptance": float(torch.cat(item.beta).mean()), "standard_error": error})
    return {"rules": rules}


def entropy_over_threshold(entropies: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Figure 3: the mean of `kad.figures.approximation.entropy_difference` over positions."""
    sums, conditionals = (torch.cat(parts, dim=-1) for parts in zip(*entropies, strict=True))
    return {
        "threshold": list(LAMBDAS),
        "sum_difference": sums.mean(-1).tolist(),
        "conditional_difference": conditionals.nanmean(-1).tolist(),
        "positions": sums.shape[-1],
    }


def critical_items(rows: Approximation, budget: float) -> dict[str, Any]:
    """Figure 4: for every position max p, the critical weight (with ties) and the budget that primal leaves."""
    columns = {name: getattr(rows, name).tolist() for name in ("max_p", "critical", "unfilled", "head")}
    return {"budget": budget, **columns}


def accuracy_throughput(measured: dict[str, Measured]) -> dict[str, Any]:
    """Figure 5: accuracy (null if it is not known) and generated tokens per second of the batch."""
    rules = [
        {
            "rule": name,
            "accuracy": item.answers.accuracy,
            "tokens_per_second": item.answers.tokens_per_second,
            "questions": len(item.answers.answers),
        }
        for name, item in measured.items()
    ]
    return {"rules": rules}


def optimality_gap(rows: Approximation, settings: FigureOptions) -> dict[str, Any]:
    """Figure 6: quantiles over positions of the certified gaps in nats."""
    gaps = {
        f"primal:budget={settings.budget}": rows.primal_gap,
        f"dual:threshold={settings.threshold}, where within the budget": rows.dual_gap[~rows.dual_gap.isnan()],
        f"dual:threshold={settings.threshold}, at the mass it defers": rows.dual_own_gap,
    }
    quantiles = {name: [float(gap.quantile(q)) for q in _QUANTILES] if len(gap) else None for name, gap in gaps.items()}
    return {"quantiles": list(_QUANTILES), "gap": quantiles, "positions": len(rows.bound)}


def alpha_over_positions(measured: dict[str, Measured]) -> dict[str, Any]:
    """Figure 7: the mean deferred mass at the n-th token, over the answers that have one."""
    curves = {}
    for name, item in measured.items():
        if isinstance(item.answers.rule, Primal | Dual | Nudging):
            padded = torch.nn.utils.rnn.pad_sequence(item.alpha, batch_first=True, padding_value=torch.nan)
            curves[name] = {"mean": padded.nanmean(0).tolist(), "answers": (~padded.isnan()).sum(0).tolist()}
    return {"rules": curves}


def _interest(position: Position) -> float:
    """High where p's mass is split evenly between kept and deferred, and q* disagrees with p."""
    alpha = position.deferred_mass or 0.0
    return min(alpha, 1 - alpha) * (1 - sum(min(row.p, row.p_aligned) for row in position.candidates))


def _knapsacks(
    model: Loaded, answers: Sequence[Answer], oracle: Any, settings: FigureOptions
) -> tuple[Approximation, list[tuple[Tensor, Tensor]]]:
    parts, entropies = [], []
    for item in answers:
        others = {} if oracle is None else {"oracle": pair_of(model).scorer_of(oracle)}
        for logits in whole_rows(model, item, others):
            base, aligned = logits["base"], logits["aligned"]
            parts.append(approximation(base, aligned, budget=settings.budget, threshold=settings.threshold))
            if oracle is not None:
                entropies.append(entropy_difference(base, logits["oracle"]))
    return concatenate(parts), entropies

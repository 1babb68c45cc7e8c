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
from kad.method.composition import compose
from kad.method.defaults import PUBLISHED_DRAFT_TOKENS
from kad.method.rules import Dual, ImplicitReward, Nudging, Primal, Rule, parse_rule
from kad.text.batch import generate_all, seeds_from
from kad.text.sampling import Sampling
from kad.text.scoring import score_tokens
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
    speculative: int = 8
    """How many of the questions are also answered with drafts, sampled, one after the other: that takes longer."""


@dataclass(frozen=True)
class Measured:
    """One rule's answers, and per answer the deferred mass (cascades) and acceptance at each position, (n,) each.

    `drafts` holds how many drafts were accepted, and how many were looked at: those and the rejected ones.
    """

    answers: Answers
    alpha: list[Tensor]
    beta: list[Tensor]
    drafts: tuple[int, int]


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
        model: the pair. Its answers under dual are the text of figures 3, 4 and 6; figure 1 also looks at those of the
            base model alone.
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
        "1-distributions": distributions(
            model, tokenizer, dual.rule, [*dual.answers, *measured["base_only"].answers.answers]
        ),
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
    return Measured(
        answers, alphas, betas, _drafts(model, tokenizer, questions[: settings.speculative], rule, settings)
    )


def _drafts(
    model: Loaded, tokenizer: Any, questions: Sequence[CheckedPrompt], rule: Rule, settings: FigureOptions
) -> tuple[int, int]:
    """Drafts of q* that were accepted and that were looked at, in sampled answers."""
    sampling = Sampling(max_new_tokens=settings.max_new_tokens, temperature=1.0, top_k=0, top_p=1.0)
    prompts = [tokenizer(question.prompt, add_special_tokens=False).input_ids for question in questions]
    with model.using(rule):
        answers = generate_all(
            model, tokenizer, prompts, sampling=sampling, seeds=seeds_from(0, len(prompts)), batch_size=1,
            num_draft_tokens=PUBLISHED_DRAFT_TOKENS,
        )  # fmt: skip
    counts = [item.statistics for item in answers if item.statistics is not None]
    accepted = sum(count.accepted for count in counts)
    return accepted, accepted + sum(count.corrections for count in counts)


def distributions(model: Loaded, tokenizer: Any, rule: Rule, answers: Sequence[Answer]) -> dict[str, Any]:
    """Figure 1: p, q* and pi where the first tokens of p and q* differ, and both have most in pi.

    Greedy text under the rule may hold no such position; that of the base model alone does.
    """
    interests = [
        torch.cat([_interest(rule, rows["base"], rows["aligned"]) for rows in whole_rows(model, item)])
        for item in answers
    ]
    number = max(range(len(interests)), key=lambda item: float(interests[item].max()))
    item, index = answers[number], int(interests[number].argmax())
    with model.using(rule):
        trace = trace_tokens(model, tokenizer, item.prompt_ids, item.token_ids)
    position = trace.positions[index]
    rows = sorted(position.candidates, key=lambda row: -max(row.p, row.p_aligned, row.pi))[:6]
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
    """Figure 2: the mean acceptance of a draft from q* over all positions, its standard error over answers, and the
    share of drafts that were accepted, of those that were looked at (null without drafts)."""
    rules = []
    for name, item in measured.items():
        means = torch.stack([beta.mean() for beta in item.beta])
        error = float(means.std() / len(means) ** 0.5) if len(means) > 1 else None
        accepted, seen = item.drafts
        rules.append(
            {
                "rule": name,
                "acceptance": float(torch.cat(item.beta).mean()),
                "standard_error": error,
                "empirical": accepted / seen if seen else None,
                "drafts": seen,
            }
        )
    return {"rules": rules}


def entropy_over_threshold(entropies: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Figure 3: the mean of `kad.figures.approximation.entropy_difference` over positions.

    `sum_error` is the standard error of the sums' mean, over the answers (null for one answer).
    """
    sums, conditionals = (torch.cat(parts, dim=-1) for parts in zip(*entropies, strict=True))
    means = torch.stack([own.mean(-1) for own, _ in entropies])
    return {
        "threshold": list(LAMBDAS),
        "sum_difference": sums.mean(-1).tolist(),
        "sum_error": (means.std(0) / len(means) ** 0.5).tolist() if len(means) > 1 else None,
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


def _interest(rule: Rule, base: Tensor, aligned: Tensor) -> Tensor:
    """(n,): what p's and q*'s first tokens both have in pi at least. Zero where they are one token."""
    first = torch.stack((base.argmax(-1), aligned.argmax(-1)), dim=-1)
    pi = compose(rule, base, aligned).exp().gather(-1, first).amin(-1)
    return torch.where(first[:, 0] == first[:, 1], 0.0, pi)


def _knapsacks(
    model: Loaded, answers: Sequence[Answer], oracle: Any, settings: FigureOptions
) -> tuple[Approximation, list[tuple[Tensor, Tensor]]]:
    """The certificates at all positions, and the entropy differences of each answer."""
    parts, entropies = [], []
    for item in answers:
        others = {} if oracle is None else {"oracle": pair_of(model).scorer_of(oracle)}
        own = []
        for logits in whole_rows(model, item, others):
            base, aligned = logits["base"], logits["aligned"]
            parts.append(approximation(base, aligned, budget=settings.budget, threshold=settings.threshold))
            if oracle is not None:
                own.append(entropy_difference(base, logits["oracle"]))
        if own:
            sums, conditionals = (torch.cat(chunks, dim=-1) for chunks in zip(*own, strict=True))
            entropies.append((sums, conditionals))
    return concatenate(parts), entropies

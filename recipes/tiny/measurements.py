"""What the table is made of: accuracies on the held-out split and acceptance rates, one JSON record a row."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kad import tiny
from kad.composition import acceptance
from kad.modeling import KadForCausalLM
from kad.rules import Rule
from kad.tiny.measure import Answer, answer

Record = dict[str, Any]
PROBLEMS = 500
_ROWS = 125


def measure_model(model: Any, n: int = PROBLEMS) -> Record:
    """Correct answers of one single model, greedy and sampled, in all and in both halves."""
    return {way: _counts(answers) for way, answers in _answers(model, n).items()}


def measure_rule(model: KadForCausalLM, rule: Rule, n: int = PROBLEMS) -> Record:
    """The same for the composed model under `rule`, with the acceptance rate of drafts from q* along its own texts."""
    started = time.process_time()
    record: Record = {"rule": str(rule)}
    with model.using(rule):
        for way, answers in _answers(model, n).items():
            record[way] = _counts(answers) | {"acceptance": round(mean_acceptance(model, answers), 4)}
    return record | {"cpu_seconds": round(time.process_time() - started)}


def _answers(model: Any, n: int) -> dict[str, list[Answer]]:
    tokenizer = AutoTokenizer.from_pretrained(tiny.path("small-aligned"))
    held_out = tiny.problems("held-out", n)
    return {
        way: answer(model, tokenizer, held_out, sampled=way == "sampled", batch_size=_ROWS)
        for way in ("greedy", "sampled")
    }


def _counts(answers: list[Answer]) -> Record:
    unseen = [a for a in answers if a.problem.unseen]
    return {
        "asked": len(answers),
        "right": sum(a.correct for a in answers),
        "asked_unseen": len(unseen),
        "right_unseen": sum(a.correct for a in unseen),
    }


@torch.inference_mode()
def mean_acceptance(model: KadForCausalLM, answers: list[Answer]) -> float:
    """Mean of sum_v min(pi_v, q*_v) over all positions of the answers, their end included."""
    total, positions = 0.0, 0
    for start in range(0, len(answers), _ROWS):
        rows = answers[start : start + _ROWS]
        width = max(len(a.prompt_ids) + len(a.token_ids) for a in rows)
        ids = torch.tensor([a.prompt_ids + a.token_ids + [0] * (width - len(a.prompt_ids + a.token_ids)) for a in rows])
        reference = model.reference(ids).logits if model.rule.needs_reference else None
        rates = acceptance(model.rule, model.base(ids).logits, model.aligned(ids).logits, reference)
        for rate, a in zip(rates, rows, strict=True):
            # The position before a token is where it was chosen; the last one is where the answer ended.
            first, last = len(a.prompt_ids) - 1, len(a.prompt_ids) + len(a.token_ids)
            total += float(rate[first:last].sum())
            positions += last - first
    return total / positions


def load_single(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


def load_pair(base: Path, aligned: Path, reference: Path) -> KadForCausalLM:
    return KadForCausalLM.from_models(str(base), str(aligned), reference=str(reference))

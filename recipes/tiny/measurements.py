"""What the table is made of: accuracies on the held-out split and acceptance rates, one JSON record a row."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kad import tiny
from kad.engines.pair import Pair
from kad.engines.transformers.model import TransformersModel
from kad.engines.transformers.modeling import KadForCausalLM
from kad.rules import Rule
from kad.text.scoring import score_tokens
from kad.tiny.measure import Attempt, attempt

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


def _answers(model: Any, n: int) -> dict[str, list[Attempt]]:
    tokenizer = AutoTokenizer.from_pretrained(tiny.path("small-aligned"))
    held_out = tiny.problems("held-out", n)
    return {
        way: attempt(model, tokenizer, held_out, sampled=way == "sampled", batch_size=_ROWS)
        for way in ("greedy", "sampled")
    }


def _counts(answers: list[Attempt]) -> Record:
    unseen = [a for a in answers if a.problem.unseen]
    return {
        "asked": len(answers),
        "right": sum(a.correct for a in answers),
        "asked_unseen": len(unseen),
        "right_unseen": sum(a.correct for a in unseen),
    }


def mean_acceptance(model: KadForCausalLM, answers: list[Attempt]) -> float:
    """Mean of sum_v min(pi_v, q*_v) over all positions of the answers, their end included."""
    end = model.tokenizer.eos_token_id
    rates = [score_tokens(model, a.prompt_ids, [*a.token_ids, end], model.composition).acceptance for a in answers]
    return float(torch.cat(rates).mean())


def load_single(folder: Path) -> Pair:
    return Pair.one(TransformersModel(AutoModelForCausalLM.from_pretrained(folder)))


def load_pair(base: Path, aligned: Path, reference: Path) -> KadForCausalLM:
    return KadForCausalLM.from_models(str(base), str(aligned), reference=str(reference))

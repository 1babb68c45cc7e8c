"""Single models on the development split: what every choice of the recipe was made by.

`python -m recipes.tiny.evaluate small-aligned-0 big-aligned-0`; composed models are measured by `recipes.tiny.table`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from kad.engines.pair import Pair
from kad.engines.transformers.model import TransformersModel
from kad.tiny.measure import Attempt, attempt
from kad.tiny.problems import problems
from recipes.tiny.pretrain import load_tokenizer
from recipes.tiny.settings import BUILD


def halves(answers: list[Attempt]) -> dict[str, float]:
    """Accuracy in per cent on all problems, on those whose equations may have been seen, and on the rest."""
    parts = {
        "all": answers,
        "seen": [a for a in answers if not a.problem.unseen],
        "unseen": [a for a in answers if a.problem.unseen],
    }
    return {name: round(100 * sum(a.correct for a in part) / len(part), 1) for name, part in parts.items()}


def evaluate(folder: Path, n: int) -> None:
    tokenizer = load_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    for sampled in (False, True):
        answers = attempt(Pair.one(TransformersModel(model)), tokenizer, problems("development", n), sampled=sampled)
        print(folder.name, "sampled" if sampled else "greedy", halves(answers), flush=True)
    for wrong in [a for a in answers if not a.correct][:4]:
        print("   ", wrong.problem.chain, "|", wrong.text.replace("\n", "\\n"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+")
    parser.add_argument("-n", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.names:
        evaluate(BUILD / name, options.n)

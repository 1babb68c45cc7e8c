"""What a base model gives at the decisions of form, by itself: `python -m recipes.tiny.form big-base-0`.

The aligned answers to development problems are read with the base model. At every decision of form (how to open, what
follows an equation, how to end) the table shows what the model gives to the aligned token and to the strongest other
one. A cascade keeps what p is sure of, so a large number in the later columns means that p overrides the aligned form
there. It is a figure of p alone: the one by which the corpus was judged, before anything was composed.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers import AutoTokenizer

from kad.text.prompts import encode
from kad.tiny.problems import Problem, problems
from recipes.tiny.alignment import solution
from recipes.tiny.measurements import load_single
from recipes.tiny.settings import BUILD

DIFFUSE = 0.25
"""p is diffuse at a place where no token but the aligned one has more than this."""

Place = tuple[str, str]  # the sentence so far, numbers and operators as N and ∘; the aligned token


@dataclass
class Given:
    """What the model gave at one kind of place, one number a position."""

    aligned: list[float] = field(default_factory=list)
    other: list[float] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def cells(self) -> tuple[str, ...]:
        token, _ = self.others.most_common(1)[0]
        above = mean(p > DIFFUSE for p in self.other)
        return f"{mean(self.aligned):.2f}", f"{token!r}", f"{mean(self.other):.2f}", f"{100 * above:.0f} %"


def places(tokens: list[str]) -> Iterator[tuple[int, Place]]:
    """The positions of an aligned answer at which form is decided: all but digits and the spaces inside equations."""
    for position, token in enumerate(tokens):
        written = "".join(tokens[:position]).rsplit(". ", 1)[-1]
        if not token.isdigit() and (token != " " or written.endswith(",")):
            yield position, (_abstract(written), _abstract(token))


def _abstract(text: str) -> str:
    return re.sub(r"[-+×÷]", "∘", re.sub(r"\d+", "N", text))


@torch.inference_mode()
def read(model: Any, tokenizer: Any, asked: list[Problem]) -> dict[Place, Given]:
    """What `model` gives at each kind of place in the aligned answers to `asked`."""
    given: dict[Place, Given] = defaultdict(Given)
    for problem in asked:
        prompt = encode(tokenizer, problem.messages())
        answer = [*tokenizer(solution(problem.equations)).input_ids, tokenizer.eos_token_id]
        rows = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float().softmax(-1)
        for position, place in places([tokenizer.decode([token]) for token in answer]):
            row, token = rows[position], answer[position]
            given[place].aligned.append(float(row[token]))
            probability, strongest = row.index_fill(0, torch.tensor(token), 0).max(0)
            given[place].other.append(float(probability))
            given[place].others[tokenizer.decode([int(strongest)])] += 1
    return given


def table(given: dict[Place, Given], least: int) -> str:
    """Markdown, one line for each kind of place met at least `least` times."""
    lines = [
        f"| the sentence so far | aligned token | p gives it | strongest other | p gives it | above {DIFFUSE} |",
        "|---|---|---|---|---|---|",
    ]
    for (written, token), seen in given.items():
        if len(seen.other) >= least:
            lines.append(f"| {' | '.join((f'`{written}`', f'{token!r}', *seen.cells()))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.tiny.form", description=__doc__)
    parser.add_argument("name", help="a base model in build/, e.g. big-base-0, or a folder")
    parser.add_argument("-n", type=int, default=200, help="development problems")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = BUILD / options.name if (BUILD / options.name).exists() else Path(options.name)
    model, tokenizer = load_single(folder), AutoTokenizer.from_pretrained(folder)
    print(table(read(model, tokenizer, problems("development", options.n)), options.n // 10))


if __name__ == "__main__":
    main()

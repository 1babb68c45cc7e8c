"""The problems of the tiny family: word problems in arithmetic, their splits, and the check of an answer.

Everything here is deterministic and needs no torch. The same calls give the same problems on every machine. So
training, evaluation, demo and tests can share them.

Two rules keep the held-out figures honest:

- The *split* of a problem is a hash of its numbers and operations. So no chain of numbers and operations occurs in two
  splits, whatever the names and phrases around it are.
- About a tenth of all equations is *kept out* of every training text, also by hash. Development and held-out problems
  alternate between problems without a kept-out equation and problems with at least one (`Problem.unseen`). This tells
  "it can add" from "it has seen this sum".
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from kad.errors import UsageError
from kad.tiny.phrases import tell

Split = Literal["train", "development", "held-out"]
Operator = Literal["+", "-", "×", "÷"]

SYSTEM_PROMPT = "Answer the question by walking through the reasoning step by step."
"""The papers' system prompt; the aligned models were trained on it among others."""

LARGEST_VALUE = 399
_SHARE_KEPT_OUT = 10  # one equation in ten
_SPLIT_OF_BUCKET: tuple[Split, ...] = ("train",) * 16 + ("development",) * 2 + ("held-out",) * 2


def _bucket(text: str, buckets: int) -> int:
    """A stable hash of `text` in 0 .. buckets - 1 (Python's own hash changes from run to run)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % buckets


@lru_cache(maxsize=1 << 17)
def is_kept_out(left: int, operator: str, right: int) -> bool:
    """Whether `left operator right` is kept out of every training text.

    For + and ×, the order of the operands does not matter. One-digit tables are never kept out (both operands below 10;
    for ÷, divisor and quotient below 10). Longer sums are made of them, and nothing else teaches them.
    """
    if operator == "÷":
        table = right < 10 and left // right < 10
    else:
        table = left < 10 and right < 10
    if table:
        return False
    low, high = sorted((left, right)) if operator in "+×" else (left, right)
    return _bucket(f"{low} {operator} {high}", _SHARE_KEPT_OUT) == 0


@dataclass(frozen=True)
class Equation:
    """One step of a working: `left operator right = result`, all whole numbers."""

    left: int
    operator: Operator
    right: int

    @property
    def result(self) -> int:
        """The right side of the equation."""
        if self.operator == "+":
            return self.left + self.right
        if self.operator == "-":
            return self.left - self.right
        return self.left * self.right if self.operator == "×" else self.left // self.right

    @property
    def kept_out(self) -> bool:
        """Whether this equation appears in no training text."""
        return is_kept_out(self.left, self.operator, self.right)

    def __str__(self) -> str:
        return f"{self.left} {self.operator} {self.right} = {self.result}"


@dataclass(frozen=True)
class Problem:
    """A word problem with its worked solution."""

    question: str
    equations: tuple[Equation, ...]

    @property
    def answer(self) -> int:
        """The result of the last equation."""
        return self.equations[-1].result

    @property
    def chain(self) -> str:
        """The numbers and operations alone, e.g. `24 + 13 - 5`: what the split is a hash of."""
        return chain(self.equations)

    @property
    def split(self) -> Split:
        """Which split the problem belongs to."""
        return split_of(self.equations)

    @property
    def unseen(self) -> bool:
        """Whether at least one of its equations is kept out of every training text."""
        return any(equation.kept_out for equation in self.equations)

    def messages(self, system: str | None = SYSTEM_PROMPT) -> list[dict[str, str]]:
        """The problem as a chat, ready for `tokenizer.apply_chat_template`."""
        head = [] if system is None else [{"role": "system", "content": system}]
        return [*head, {"role": "user", "content": self.question}]

    def is_correct(self, text: str) -> bool:
        """Exact match of the last `\\boxed{}` in `text` with the answer."""
        return boxed(text) == str(self.answer)


def boxed(text: str) -> str | None:
    """The content of the last `\\boxed{...}` in `text`, or None."""
    boxes = re.findall(r"\\boxed\{([^{}]*)\}", text)
    return boxes[-1].strip() if boxes else None


def chain(equations: tuple[Equation, ...]) -> str:
    """The first number, then every operator and number: "98 + 30 - 2"."""
    return " ".join([str(equations[0].left), *(f"{e.operator} {e.right}" for e in equations)])


def split_of(equations: tuple[Equation, ...]) -> Split:
    """The split of a problem with these equations, from a hash of their chain."""
    return _SPLIT_OF_BUCKET[_bucket(chain(equations), len(_SPLIT_OF_BUCKET))]


def problems(split: Split, n: int, *, seed: int = 0) -> list[Problem]:
    """The first `n` problems of a split. For m < n, `problems(split, m)` gives the first m of them.

    In development and held-out, problems at even positions have no kept-out equation, and problems at odd positions
    have at least one. Training problems have none.

    Raises:
        UsageError: unknown split or negative `n`.
    """
    if n < 0:
        raise UsageError(f"Got {n} as the number of problems. Ask for 0 or more.")
    stream = stream_problems(split, random.Random(f"kad-tiny-{split}-{seed}"))
    return [next(stream) for _ in range(n)]


def stream_problems(split: Split, rng: random.Random) -> Iterator[Problem]:
    """Endless problems of one split, drawn with `rng`. Outside the training split no chain occurs twice."""
    if split not in get_args(Split):
        raise UsageError(f"Unknown split {split!r}. Choose from: {', '.join(get_args(Split))}.")
    drawn: set[str] = set()
    while True:
        want_unseen = split != "train" and len(drawn) % 2 == 1
        equations = draw_equations(rng)
        if any(e.kept_out for e in equations) != want_unseen or split_of(equations) != split:
            continue
        if split != "train":
            if chain(equations) in drawn:
                continue
            drawn.add(chain(equations))
        yield Problem(tell([(e.left, e.operator, e.right) for e in equations], rng), equations)


def draw_equations(rng: random.Random) -> tuple[Equation, ...]:
    """One to four equations, each starting from the result of the one before."""
    steps = rng.choices((1, 2, 3, 4), weights=(20, 35, 30, 15))[0]
    # The first number: 2 to 99, or 100 to 250 in 8 % of the cases.
    low, high = rng.choices(((2, 40), (2, 99), (100, 250)), weights=(50, 42, 8))[0]
    value = rng.randint(low, high)
    equations: list[Equation] = []
    while len(equations) < steps:
        equations.append(draw_step(value, rng))
        value = equations[-1].result
    return tuple(equations)


def draw_step(value: int, rng: random.Random) -> Equation:
    """One operation on `value` that stays within 1 .. LARGEST_VALUE."""
    while True:
        operator: Operator = rng.choices(("+", "-", "×", "÷"), weights=(36, 36, 14, 14))[0]
        equation = Equation(value, operator, _draw_operand(operator, rng))
        exact = operator != "÷" or (value % equation.right == 0 and value <= 250)
        if exact and 1 <= equation.result <= (250 if operator == "×" else LARGEST_VALUE):
            return equation


def _draw_operand(operator: Operator, rng: random.Random) -> int:
    if operator in "×÷":
        return rng.randint(2, 5)
    low, high = rng.choices(((2, 30), (2, 99), (100, 200)), weights=(60, 35, 5))[0]
    return rng.randint(low, high)

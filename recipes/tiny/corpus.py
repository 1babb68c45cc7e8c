"""The pretraining text, as messy as the web, and free of every kept-out equation.

A shard is a stream of documents drawn from one seed; `shard_documents(seed, index)` gives the same text everywhere.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from kad.tiny.problems import Equation, Operator, draw_step, stream_problems
from recipes.tiny import filler
from recipes.tiny.layouts import document, draw_layout, write_equation

DOCUMENT_END = "<|endoftext|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
TURN_END = "<|end|>"

# Shares of documents (not of tokens): drills, worked problems, prose, forum, lists, pieces with the chat markers.
_KINDS = ("drill", "problem", "prose", "forum", "list", "dialogue")
_WEIGHTS = (36, 50, 4, 3, 2, 5)


def shard_documents(seed: int, index: int) -> Iterator[str]:
    """Endless documents of one shard, each with what divides it from the next."""
    rng = random.Random(f"kad-tiny-corpus-{seed}-{index}")
    problems = stream_problems("train", rng)
    makers = {
        "drill": lambda: drill(rng),
        "problem": lambda: document(next(problems), rng),
        "prose": lambda: filler.prose(rng),
        "forum": lambda: filler.forum(rng),
        "list": lambda: filler.shopping_list(rng),
        "dialogue": lambda: dialogue(document(next(problems), rng), rng),
    }
    while True:
        kind = rng.choices(_KINDS, weights=_WEIGHTS)[0]
        # One document in eight runs into the next without a clean end.
        yield makers[kind]() + (DOCUMENT_END if rng.random() < 0.875 else rng.choice(("\n", "\n\n", " ")))


def drill(rng: random.Random) -> str:
    """A list of bare equations: dense practice. Values are spread more evenly than in the problems."""
    form = rng.choice(("{a} {o} {b} = {c}",) * 6 + ("{a}{o}{b}={c}", draw_layout(rng).equation))
    separator = rng.choice(("\n", "\n", ", ", "; ", ". ", " "))
    return separator.join(write_equation(form, drill_equation(rng)) for _ in range(rng.randint(4, 14)))


def drill_equation(rng: random.Random) -> Equation:
    """An equation that is not kept out, from the problems' range of values."""
    while True:
        equation = _division(rng) if rng.random() < 0.1 else draw_step(_drill_start(rng), rng)
        if not equation.kept_out:
            return equation


def _drill_start(rng: random.Random) -> int:
    low, high = rng.choices(((1, 99), (100, 399)), weights=(65, 35))[0]
    return rng.randint(low, high)


def _division(rng: random.Random) -> Equation:
    """Exact divisions are rare among random numbers, so they are made from their quotient."""
    operator: Operator = "÷"
    divisor = rng.randint(2, 5)
    return Equation(divisor * rng.randint(1, 250 // divisor), operator, divisor)


def dialogue(text: str, rng: random.Random) -> str:
    """A piece of text cut up by chat markers, with and without their end and in no fixed order of roles."""
    pieces = rng.choice((text.split("\n", 1), [text], [filler.sentence(rng), text], [text, filler.sentence(rng)]))
    closing = rng.choice((TURN_END, TURN_END, TURN_END, "", "\n"))
    return "".join(rng.choice(ROLES) + piece + closing for piece in pieces)

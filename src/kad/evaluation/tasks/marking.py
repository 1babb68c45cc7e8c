"""Marking one answer: `paper`, the published metric, beside `strict`, each 0 or 1. These are lm-eval's
`process_results`. Short questions have two other marks, see `mark_fact`.

A document (see `documents.py`) carries `answer`, the plain answer, and `solution`, a text that ends in it. The
published code reads the answer out of the solution as it reads the prediction's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kad.errors import missing_extra
from kad.evaluation.tasks import extract

Document = Mapping[str, Any]
Marks = dict[str, float]


def mark_number(doc: Document, results: Sequence[str]) -> Marks:
    """GSM8K and SVAMP: the last number as a string; the stated number as a number."""
    stated = extract.strict_number(results[0])
    return {
        "paper": _same(extract.paper_number, doc, results[0]),
        "strict": float(stated is not None and stated == extract.parse_number(doc["answer"])),
    }


def mark_boxed_number(doc: Document, results: Sequence[str]) -> Marks:
    """The tiny family's problems: a number in a box."""
    return {**mark_number(doc, results), "paper": _same(extract.paper_boxed, doc, results[0])}


def mark_math(doc: Document, results: Sequence[str]) -> Marks:
    """MATH-500: the last box as a string; the stated answer by mathematical equivalence (`math-verify`)."""
    stated = extract.strict_math(results[0])
    return {
        "paper": _same(extract.paper_boxed, doc, results[0]),
        "strict": float(stated is not None and equivalent(doc["answer"], stated)),
    }


def mark_option(doc: Document, results: Sequence[str]) -> Marks:
    """ARC, CommonsenseQA, TruthfulQA: the last lone capital; the letter stated as the answer."""
    return {
        "paper": _same(extract.paper_option, doc, results[0]),
        "strict": float(extract.strict_option(results[0]) == doc["answer"]),
    }


def mark_fact(doc: Document, results: Sequence[str]) -> Marks:
    """Short questions: `right`, an accepted answer is in the text; `behaves`, the text is an answer and no more.

    An answer behaves if it has one or two sentences, asks nothing, and was ended by the model itself. The run puts
    "finished" into the document; where nobody says it, the text counts as ended.
    """
    text = results[0]
    short = 1 <= extract.sentences(text) <= 2
    return {
        "right": float(any(extract.contains(text, answer) for answer in doc["accepted"].split("|"))),
        "behaves": float(short and not extract.asks(text) and bool(doc.get("finished", True))),
    }


def equivalent(answer: str, given: str) -> bool:
    """Whether two LaTeX answers say the same; `math-verify` decides what the plain comparison cannot."""
    if "".join(answer.split()) == "".join(given.split()):
        return True
    try:
        from math_verify import parse, verify
    except ImportError:
        raise missing_extra("eval", "math-verify") from None

    # math-verify's own time limit is a signal, which only the main thread may set.
    limit = 5 if threading.current_thread() is threading.main_thread() else None
    expected, found = (parse(f"\\boxed{{{text}}}", parsing_timeout=limit) for text in (answer, given))
    return bool(expected and found and verify(expected, found, timeout_seconds=limit))


def _same(read: Callable[[str], str | None], doc: Document, text: str) -> float:
    found = read(text)
    return float(found is not None and found == read(doc["solution"]))

"""The marks: `paper` and `strict` disagree exactly where they should."""

from __future__ import annotations

import sys

import pytest

from kad.errors import MissingExtraError
from kad.evaluation.tasks import marking

GSM = {"answer": "18", "solution": "9 * 2 = <<9*2=18>>18\n#### 18"}
MATH = {"answer": "\\frac{1}{2}", "solution": "so \\boxed{\\frac{1}{2}}."}
OPTION = {"answer": "B", "solution": "Answer: B"}


@pytest.mark.parametrize(
    ("mark", "doc", "text", "paper", "strict"),
    [
        (marking.mark_number, GSM, "The answer is 18.", 1, 1),
        (marking.mark_number, GSM, "The answer is 18.0", 0, 1),
        (marking.mark_number, GSM, "She makes 18 dollars", 1, 0),
        (marking.mark_number, GSM, "The answer is 18. Check: 18 / 2 = 9", 0, 1),
        (marking.mark_number, GSM, "", 0, 0),
        (marking.mark_boxed_number, {"answer": "7", "solution": "\\boxed{7}"}, "\\boxed{7}", 1, 1),
        (marking.mark_boxed_number, {"answer": "7", "solution": "\\boxed{7}"}, "The answer is 7.", 0, 1),
        (marking.mark_math, MATH, "\\boxed{\\frac{1}{2}}", 1, 1),
        (marking.mark_math, MATH, "\\boxed{0.5}", 0, 1),
        (marking.mark_math, MATH, "\\boxed{\\frac{2}{4}}", 0, 1),
        (marking.mark_math, MATH, "\\boxed{\\frac{1}{3}}", 0, 0),
        (marking.mark_math, MATH, "so one half", 0, 0),
        (marking.mark_option, OPTION, "B", 1, 1),
        (marking.mark_option, OPTION, "The answer is B. A nice one.", 0, 1),
        (marking.mark_option, OPTION, "Perhaps C, or then again B", 1, 0),
        (marking.mark_option, OPTION, "", 0, 0),
    ],
)
def test_marks(mark, doc, text: str, paper: int, strict: int) -> None:  # type: ignore[no-untyped-def]
    assert mark(doc, [text]) == {"paper": float(paper), "strict": float(strict)}


def test_nothing_found_never_equals_nothing_found() -> None:
    """The published code would count a missing answer on both sides as a match."""
    assert marking.mark_math({"answer": "1", "solution": "no box"}, ["no box"]) == {
        "paper": 0.0,
        "strict": 0.0,
    }


@pytest.mark.parametrize(
    ("answer", "given", "same"),
    [
        ("p - q", "-q+p", True),
        ("(3,\\pi/2)", "\\left( 3, \\frac{\\pi}{2} \\right)", True),
        ("\\text{Evelyn}", "Evelyn", True),
        ("10,\\!000", "10000", True),
        ("5", "", False),
        ("5", "6", False),
        ("\\frac{1}{2", "1/3", False),
    ],
)
def test_equivalence(answer: str, given: str, same: bool) -> None:
    assert marking.equivalent(answer, given) is same


def test_a_missing_math_verify_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(MissingExtraError, match=r'math-verify is not installed.*"kad-align\[eval\]"'):
        marking.equivalent("1", "2")
    assert marking.equivalent("1", " 1")


FACT = {"answer": "krona", "accepted": "krona|kronor"}


@pytest.mark.parametrize(
    ("accepted", "text", "right"),
    [
        ("krona|kronor", "The Swedish krona.", 1),
        ("krona|kronor", "It is paid in Kronor.", 1),
        ("Brasilia", "Brasília is the capital.", 1),
        ("Rome", "Romeo lives in Verona.", 0),
        ("pound", "They pay in pounds.", 1),
        ("1914", "In 19145 nothing happened.", 0),
        ("New Delhi|Delhi", "new delhi", 1),
        ("Lee", "Leery of books.", 0),
        ("Paris", "", 0),
    ],
)
def test_a_fact_is_right_if_an_accepted_answer_stands_in_the_text(accepted: str, text: str, right: int) -> None:
    assert marking.mark_fact({"accepted": accepted}, [text])["right"] == right


@pytest.mark.parametrize(
    ("text", "behaves"),
    [
        ("Stockholm", 1),
        ("The capital of Sweden is Stockholm.", 1),
        ("It is Stockholm. The city lies on fourteen islands.", 1),
        ("F. Scott Fitzgerald wrote it.", 1),
        ("J. R. R. Tolkien wrote it. He lived in the U.K. for most of his life.", 1),
        ("It is 1.5 million.", 1),
        ("One. Two. Three.", 0),
        ("One.\nTwo\nThree", 0),
        ("Stockholm.\nQuestion: What is the capital of Norway", 0),
        ("Stockholm. What is the capital of Norway?", 0),
        ("", 0),
        (" \n", 0),
        ("...", 0),
    ],
)
def test_an_answer_behaves_if_it_is_one_or_two_sentences_and_asks_nothing(text: str, behaves: int) -> None:
    assert marking.mark_fact(FACT, [text])["behaves"] == behaves
    assert marking.mark_fact({**FACT, "finished": False}, [text])["behaves"] == 0

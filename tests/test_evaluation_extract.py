"""The extractors against hand-written cases (tests/golden/extract.jsonl), and the marks that follow from
them."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest

from kad.evaluation.tasks import marking

CASES = [json.loads(line) for line in (Path(__file__).parent / "golden" / "extract.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['extractor']}: {case['why']}")
def test_extractor_reads_what_the_golden_case_says(case: dict[str, str]) -> None:
    answer = getattr(marking, case["extractor"])(case["text"])
    expected = case["expected"]
    if case["extractor"] == "strict_number" and expected is not None:
        expected = Fraction(expected)
    assert answer == expected


def test_every_extractor_has_the_trap_of_an_empty_answer() -> None:
    covered = {case["extractor"] for case in CASES if case["text"] == ""}
    assert covered == {name for name in vars(marking) if name.startswith(("paper_", "strict_"))}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("51", 51),
        ("51.0", 51),
        ("-1,000", -1000),
        ("1/3", Fraction(1, 3)),
        ("none", None),
        ("5%", 5),
        ("7,5", 7),
    ],
)
def test_numbers_are_read_as_numbers(text: str, value: Fraction | None) -> None:
    assert marking.parse_number(text) == value

"""Numbers in messages."""

from __future__ import annotations

import pytest

from kad.words import count_text, counted, size_text


@pytest.mark.parametrize(("number", "text"), [(0, "0 tokens"), (1, "1 token"), (2, "2 tokens"), (2048, "2,048 tokens")])
def test_counted(number: int, text: str) -> None:
    assert counted(number, "token") == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"), (1, "1 B"), (1023, "1,023 B"), (1024, "1 KiB"), (1500, "1.46 KiB"), (1020 * 1024, "1,020 KiB"),
        (2**20 - 1, "1,024 KiB"), (2**20, "1 MiB"), (3 * 2**30 // 2, "1.5 GiB"), (5000 * 2**30, "5,000 GiB"),
    ],
)  # fmt: skip
def test_size_text(number: float, text: str) -> None:
    assert size_text(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1 K"), (999_900, "1,000 K"), (14.8e9, "14.8 B"), (2e12, "2,000 B")],
)
def test_count_text(number: float, text: str) -> None:
    assert count_text(number) == text

"""The part of docs/support.md for llama.cpp and MLX is what the marks of these tests say."""

from __future__ import annotations

from make import support


def test_the_support_page_is_what_these_tests_say() -> None:
    support.check("laptop")

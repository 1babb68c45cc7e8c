"""The vLLM part of docs/support.md is what the marks of these tests say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_support_page_is_what_these_tests_say() -> None:
    done = subprocess.run(
        [sys.executable, "make/support.py", "vllm", "--check"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr

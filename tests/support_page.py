"""The support page against the marks of the tests: called in each of the three environments for its own tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def check(part: str) -> None:
    """Fail where the page is not what the marks of this part's tests say; the parts are those of make/support.py."""
    command = [sys.executable, "make/support.py", part, "--check"]
    folder = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr

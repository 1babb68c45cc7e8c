"""Seconds from the command `kad playground` until its page is there, and until it can be asked.

python -m benchmarks.playground_start
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from statistics import median
from urllib.request import urlopen

RUNS = 5


def seconds() -> tuple[float, float]:
    """Of one start: until the page answers, and until the models do."""
    command = [sys.executable, "-m", "kad", "playground", "--no-browser", "--port", "0"]
    began = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            address = next(found[0] for line in server.stderr if (found := re.search(r"http://\S+", line)))
            took = []
            for path in ("", "/v1/models"):
                with urlopen(address + path, timeout=120) as answer:
                    answer.read()
                took.append(time.perf_counter() - began)
        finally:
            server.terminate()
    return took[0], took[1]


def main() -> None:
    """Some starts, and their medians."""
    runs = [seconds() for _ in range(RUNS)]
    for name, values in zip(("page", "models"), zip(*runs, strict=True), strict=True):
        print(f"{name}: {median(values):.1f} s ({min(values):.1f} to {max(values):.1f})")


if __name__ == "__main__":
    main()

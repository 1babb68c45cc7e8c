"""What a run is (`Settings`, which a resumed run must repeat) and where it ran (`session`, which may
differ)."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kad.evaluation.options import RunOptions
from kad.evaluation.tasks.task import TaskInfo

SCHEMA = "kad-run/2"
_PACKAGES = (
    "kad-align",
    "torch",
    "transformers",
    "lm-eval",
    "math-verify",
    "vllm",
    "llama-cpp-python",
    "mlx-lm",
    "numpy",
)


@dataclass(frozen=True, kw_only=True)
class Settings(RunOptions):
    """Everything that a sample depends on. Two runs with equal settings have equal samples on equal hardware.

    Attributes:
        models: by role, hub ids by revision and folders by what lies in them.
        methods: their names.
        tasks: what was asked.
        pair_rule: the rule for which the method `pair` stands, if it is among the methods.
        deferral_temperature: of every composition.
        base_prompt: how the base model is asked. None: as the aligned model.
        dtype: of the weights.
        device: where the models are.
    """

    models: dict[str, str | None]
    methods: tuple[str, ...]
    tasks: tuple[TaskInfo, ...]
    pair_rule: str | None = None
    deferral_temperature: float = 1.0
    base_prompt: dict[str, Any] | None = None
    dtype: str = "auto"
    device: str = "cpu"

    def to_dict(self) -> dict[str, Any]:
        """As JSON: tuples are lists."""
        return {
            "schema": SCHEMA,
            **asdict(self),
            "methods": list(self.methods),
            "tasks": [{**asdict(task), "until": list(task.until)} for task in self.tasks],
        }

    def samples_of(self, task: TaskInfo) -> int:
        """How many answers each question gets. Log-likelihoods are the same every time."""
        return 1 if task.scored else self.samples

    def temperature_of(self, task: TaskInfo) -> float:
        """The temperature of the run, else that of the task."""
        return task.temperature if self.temperature is None else self.temperature

    def max_new_tokens_of(self, task: TaskInfo) -> int:
        """The token limit of the run, else that of the task."""
        return task.max_new_tokens if self.max_new_tokens is None else self.max_new_tokens


def session(command: Sequence[str] = sys.argv) -> dict[str, Any]:
    """Versions, git revision, hardware, the exact command and the time, as JSON."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(command[0]).name, *command[1:]]),
        "versions": {"python": platform.python_version(), **_versions()},
        "git": git_revision(),
        "hardware": _hardware(),
    }


def git_revision(folder: Path = Path(__file__).parent) -> str | None:
    """The revision of the source tree, with "+changes" where files differ from it; None outside of a git
    checkout."""
    revision = _git(folder, "rev-parse", "HEAD")
    if revision is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", str(folder.parent))
    return f"{revision}+changes" if changed else revision


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _hardware() -> dict[str, Any]:
    import torch

    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )

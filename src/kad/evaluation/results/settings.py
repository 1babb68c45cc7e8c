"""What a run is (`Settings`, which a resumed run must repeat), and where it ran (`session`, which may differ)."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kad.evaluation.run_options import RunOptions
from kad.evaluation.tasks.task import TaskInfo
from kad.pair.sources import Source

SCHEMA = "kad-run/2"
_MEGABYTE = 1 << 20
_PACKAGES = "kad-align torch transformers lm-eval math-verify vllm llama-cpp-python mlx-lm numpy"


@dataclass(frozen=True, kw_only=True)
class Settings(RunOptions):
    """Everything that a sample depends on. Two runs with equal settings have equal samples on equal hardware.

    Attributes:
        models: by role, hub ids by revision and folders by what lies in them.
        methods: their names.
        tasks: what was asked.
        pair_rule: the rule for which the method `pair` stands, if it is among the methods.
        deferral_temperature: divides the logits of every model, in compositions and alone.
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

    @property
    def total_samples(self) -> int:
        """How many samples the whole run holds."""
        return len(self.methods) * sum(self.samples_of(task) * task.rows for task in self.tasks)

    def temperature_of(self, task: TaskInfo) -> float:
        """The temperature of the run, else that of the task."""
        return task.temperature if self.temperature is None else self.temperature

    def max_new_tokens_of(self, task: TaskInfo) -> int:
        """The token limit of the run, else that of the task."""
        return task.max_new_tokens if self.max_new_tokens is None else self.max_new_tokens


def fingerprint(source: Source) -> str:
    """The hub id with its revision, or the name of a folder or a GGUF file with a digest of the files.

    The same weights in another place are the same model. Other weights in the same place are another model. A model on
    a server is what its address and its name there say.
    """
    if source.url is not None:
        return source.url if source.served is None else f"{source.url}#{source.served}"
    if source.gguf_path is not None:
        return f"{source.gguf_path.name}:{_digest([source.gguf_path])}"
    if source.is_local:
        folder = Path(source.model)
        return f"{folder.name}:{_digest(path for path in folder.iterdir() if path.is_file())}"
    return source.model if source.revision is None else f"{source.model}@{source.revision}"


def _digest(files: Iterable[Path]) -> str:
    hashed = hashlib.sha256()
    for file in sorted(files):
        size = file.stat().st_size
        hashed.update(f"{file.name} {size}".encode())
        with file.open("rb") as data:
            # Beginning, middle and end are enough: training changes all weights, and files can have gigabytes.
            for start in sorted({0, max(0, size // 2), max(0, size - _MEGABYTE)}):
                data.seek(start)
                hashed.update(data.read(_MEGABYTE))
    return hashed.hexdigest()[:16]


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
    """The revision of the source tree, with "+changes" where files differ from it; None outside of a git checkout."""
    revision = _git(folder, "rev-parse", "HEAD")
    if revision is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", str(folder.parent))
    return f"{revision}+changes" if changed else revision


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES.split():
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


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
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor()

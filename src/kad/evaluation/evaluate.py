"""From names to a finished run: what `kad eval`, `sweep`, `tune` and `reproduce` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kad.errors import UsageError
from kad.evaluation.engines.engine import Engine
from kad.evaluation.methods import Method
from kad.evaluation.results.fingerprint import fingerprint
from kad.evaluation.results.settings import Settings, session
from kad.evaluation.results.storage import RunDirectory
from kad.evaluation.run import Progress, run
from kad.evaluation.tasks.task import Task, load_tasks
from kad.sources import Source

_SET_BY_KAD = frozenset({"model", "tokenizer", "revision", "dtype", "speculative_config"})


@dataclass(frozen=True)
class Plan:
    """All that a run is asked to do.

    `models` by role: base, aligned, reference, and "pair" for the pair's own tokenizer and chat template; oracles
    come with their methods.

    Raises:
        UsageError: a value out of its range, or a method whose model is not given.
    """

    models: dict[str, Source]
    methods: tuple[Method, ...]
    tasks: tuple[str, ...]
    limit: int | None = None
    samples: int = 1
    seed: int = 0
    temperature: float | None = None
    max_new_tokens: int | None = None
    deferral_temperature: float = 1.0
    batch_size: int = 8
    data_dir: Path | None = None
    engine: str = "transformers"
    engine_options: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    diagnostics: bool = True
    load_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("limit", "samples", "max_new_tokens", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is a positive number, but got {value}")
        if self.temperature is not None and self.temperature < 0:
            raise UsageError(f"temperature is 0 (greedy) or more, but got {self.temperature}")
        if self.engine not in ENGINES:
            raise UsageError(f"unknown engine {self.engine!r}; choose from {', '.join(ENGINES)}")
        if self.engine_options and self.engine != "vllm":
            raise UsageError(f"engine options are arguments of vllm.LLM; the {self.engine} engine takes none")
        taken = sorted(self.engine_options.keys() & _SET_BY_KAD)
        if taken:
            raise UsageError(f"the engine option {taken[0]} is set by the models, the method and --dtype; leave it out")
        for method in self.methods:
            missing = sorted(method.needs - self.references.keys())
            if missing:
                raise UsageError(f"{method.name} needs the {missing[0]} model; give one with --{missing[0]} MODEL")

    @property
    def references(self) -> dict[str, Source]:
        """The models by role, oracles included."""
        oracles = {m.name: Source.parse(m.reference) for m in self.methods if m.reference is not None}
        return {**self.models, **oracles}

    def settings(self, tasks: Sequence[Task]) -> Settings:
        """What a resumed run must repeat."""
        return Settings(
            models={role: fingerprint(reference) for role, reference in sorted(self.references.items())},
            methods=tuple(method.name for method in self.methods),
            tasks=tuple(task.info for task in tasks),
            samples=self.samples,
            seed=self.seed,
            temperature=self.temperature,
            max_new_tokens=self.max_new_tokens,
            deferral_temperature=self.deferral_temperature,
            batch_size=self.batch_size,
            engine=self.engine,
            engine_options=self.engine_options,
            dtype=str(self.load_options.get("dtype", "as stored")),
            device=self.device,
            diagnostics=self.diagnostics,
        )


def evaluate(plan: Plan, out: Path, progress: Callable[[Settings], Progress] | None = None) -> Settings:
    """Carry out a plan in the run directory `out`, or what is left of it there.

    Args:
        plan: what to do.
        out: the run directory, new or of the same plan.
        progress: given the settings, makes the function that is told of every finished batch.

    Raises:
        UsageError: a directory of another run, unknown tasks, data that cannot be had.
    """
    tasks = load_tasks(plan.tasks, limit=plan.limit, data_dir=plan.data_dir)
    settings = plan.settings(tasks)
    with RunDirectory(out, settings) as directory:
        directory.log_session(session())
        run(
            settings,
            plan.methods,
            tasks,
            ENGINES[plan.engine](plan),
            directory,
            progress(settings) if progress else _silent,
        )
    return settings


def _silent(what: str, done: int) -> None:
    """No progress."""


def _transformers_engine(plan: Plan) -> Engine:
    from kad.evaluation.engines.models import Models
    from kad.evaluation.engines.transformers_engine import TransformersEngine

    models = Models(
        plan.references,
        deferral_temperature=plan.deferral_temperature,
        options=plan.load_options,
        device=plan.device,
    )
    return TransformersEngine(models, plan.diagnostics)


def _vllm_engine(plan: Plan) -> Engine:
    from kad.evaluation.engines.vllm_engine import VllmEngine

    dtype = plan.load_options.get("dtype", "auto")
    return VllmEngine(plan.references, plan.deferral_temperature, dtype, plan.engine_options)


ENGINES: dict[str, Callable[[Plan], Engine]] = {"transformers": _transformers_engine, "vllm": _vllm_engine}

"""From names to a finished run: what `kad eval`, `sweep`, `tune` and `reproduce` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from kad.engines.load import engines_of
from kad.errors import UsageError
from kad.evaluation.engine import Engine
from kad.evaluation.methods import Method
from kad.evaluation.options import RunOptions, TaskOptions
from kad.evaluation.results.fingerprint import fingerprint
from kad.evaluation.results.settings import Settings, session
from kad.evaluation.results.storage import RunDirectory
from kad.evaluation.run import Progress, run
from kad.evaluation.tasks.task import Task, load_tasks
from kad.pair.base_prompt import BasePrompt
from kad.pair.sources import Source


@dataclass(frozen=True, kw_only=True)
class Plan(TaskOptions, RunOptions):
    """All that a run is asked to do.

    Attributes:
        models: by role: base, aligned, reference, and "pair" for the pair's own tokenizer and chat template; oracles
            come with their methods.
        methods: in the order of the table.
        deferral_temperature: of every composition.
        base_prompt: how the base model is asked, in compositions and alone. None: as the aligned model.
        device: where the models are put, unless `load_options` places them.
        load_options: how to load every model.

    Raises:
        UsageError: a value out of its range, or a method whose model is not given.
    """

    models: dict[str, Source]
    methods: tuple[Method, ...]
    deferral_temperature: float = 1.0
    base_prompt: BasePrompt | None = None
    device: str = "cpu"
    load_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        TaskOptions.__post_init__(self)
        RunOptions.__post_init__(self)
        for method in self.methods:
            missing = sorted(method.needs - self.sources.keys())
            if missing:
                raise UsageError(f"{method.name} needs the {missing[0]} model. Give one with --{missing[0]} MODEL.")

    @property
    def sources(self) -> dict[str, Source]:
        """The models by role, oracles included."""
        oracles = {m.name: Source.parse(m.oracle) for m in self.methods if m.oracle is not None}
        return {**self.models, **oracles}

    @property
    def _engine_run(self) -> str:
        """The engine that runs all models. "auto" if there are several."""
        if self.engine == "vllm":
            return self.engine
        one, *others = set(engines_of(self.sources, self.engine).values())
        return "auto" if others else one

    def settings(self, tasks: Sequence[Task]) -> Settings:
        """What a resumed run must repeat."""
        return Settings(
            **{option.name: getattr(self, option.name) for option in fields(RunOptions)} | {"engine": self._engine_run},
            models={role: fingerprint(source) for role, source in sorted(self.sources.items())},
            methods=tuple(method.name for method in self.methods),
            pair_rule=next((str(method.rule) for method in self.methods if method.role == "pair"), None),
            tasks=tuple(task.info for task in tasks),
            deferral_temperature=self.deferral_temperature,
            base_prompt=None if self.base_prompt is None else self.base_prompt.to_dict(),
            dtype=str(self.load_options.get("dtype", "as stored")),
            device=self.device,
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
    tasks = load_tasks(plan.tasks, limit=plan.limit, data_dir=plan.data_dir, include_path=plan.include_path)
    settings = plan.settings(tasks)
    with RunDirectory(out, settings) as directory:
        directory.log_session(session())
        run(
            settings,
            plan.methods,
            tasks,
            make_engine(plan),
            directory,
            progress(settings) if progress else _silent,
        )
    return settings


def _silent(what: str, done: int) -> None:
    """No progress."""


def make_engine(plan: Plan) -> Engine:
    """What answers in a run."""
    return Engine(
        plan.sources,
        deferral_temperature=plan.deferral_temperature,
        options=plan.load_options,
        device=plan.device,
        base_prompt=plan.base_prompt,
        engine=plan.engine,
        engine_options=plan.engine_options,
        diagnostics=plan.diagnostics,
    )

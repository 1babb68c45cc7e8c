"""From names to a finished run: every method on every question, resumable at any moment."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from kad.engines.load import engines_of
from kad.errors import UsageError
from kad.evaluation.engine import Completion, Engine, SampleRequest
from kad.evaluation.methods import Method, execution_order
from kad.evaluation.results.settings import Settings, fingerprint, session
from kad.evaluation.results.storage import Record, RunDirectory, SampleKey
from kad.evaluation.run_options import RunOptions, TaskOptions
from kad.evaluation.tasks.task import Question, Reply, Task, load_tasks
from kad.pair.base_prompt import BasePrompt
from kad.pair.sources import Source

Progress = Callable[[str, int], None]
"""Called with what runs and how many samples are now finished, those of earlier starts included."""


@dataclass(frozen=True, kw_only=True)
class Plan(TaskOptions, RunOptions):
    """All that a run is asked to do.

    Attributes:
        models: by role: base, aligned, reference, and "pair" for the pair's own tokenizer and chat template; oracles
            come with their methods.
        methods: in the order of the table.
        deferral_temperature: divides the logits of every model, in compositions and alone.
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
        """The models by role, and those that methods name."""
        named = {m.name: Source.parse(m.model) for m in self.methods if m.model is not None}
        trusted = self.load_options.get("trust_remote_code") is True
        return {role: source.trusted_by(trusted) for role, source in {**self.models, **named}.items()}

    def load_tasks(self) -> list[Task]:
        """The tasks with their questions."""
        return load_tasks(self.tasks, limit=self.limit, data_dir=self.data_dir, include_path=self.include_path)

    def settings(self, tasks: Sequence[Task]) -> Settings:
        """What a resumed run must repeat. Its engine is the one that runs all models, "auto" if there are several."""
        engines = {"vllm"} if self.engine == "vllm" else set(engines_of(self.sources, self.engine).values())
        options = {option.name: getattr(self, option.name) for option in fields(RunOptions)}
        return Settings(
            **options | {"engine": "auto" if len(engines) > 1 else engines.pop()},
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
    """Carry out a plan in the run directory `out`, new or of the same plan; what is finished there stays.

    `progress` gets the settings, and makes the function that is told of every finished batch.

    Raises:
        UsageError: a directory of another run, unknown tasks, data that cannot be had.
    """
    tasks = plan.load_tasks()
    settings = plan.settings(tasks)
    order = execution_order(plan.methods)
    with RunDirectory(out, settings) as directory:
        directory.log_session(session())
        engine = make_engine(plan)
        report = progress(settings) if progress else lambda what, done: None
        for position, method in enumerate(order):
            for task in tasks:
                for batch in batches_of(method, task, engine, settings):
                    _run_batch(batch, task, engine, directory, settings)  # on disk before the next begins
                    report(f"{task.info.name} · {method.name}", len(batch))
            engine.release(frozenset().union(*(later.needs for later in order[position + 1 :])))
    return settings


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


@dataclass(frozen=True)
class Sample:
    """One sample of one question by one method."""

    method: Method
    question: Question
    sample: int

    @property
    def key(self) -> SampleKey:
        """Which sample this is."""
        return SampleKey(self.method.name, self.question.task, self.question.question_id, self.sample)


def sample_seed(seed: int, task: str, question_id: str, sample: int) -> int:
    """The seed of one sample, 63 bits. All methods share it, so that paired differences have less noise."""
    digest = hashlib.sha256(f"{seed}/{task}/{question_id}/{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def batches_of(method: Method, task: Task, engine: Engine, settings: Settings) -> Iterator[list[Sample]]:
    """The batches of a method on a task.

    They depend on the settings only, so a resumed run has the same batches. Rounding depends on the shape of a batch.
    """
    questions = task.questions(engine.renderer(method))
    numbers = range(settings.samples_of(task.info))
    samples = [Sample(method, question, number) for question in questions for number in numbers]
    # Prompts of similar length need less padding. The longest come first: what does not fit in memory fails at once.
    samples.sort(key=lambda sample: (-len(sample.question.prompt), sample.question.question_id, sample.sample))
    size = engine.batch_size(method, settings.batch_size)
    for start in range(0, len(samples), size):
        yield samples[start : start + size]


def _run_batch(batch: list[Sample], task: Task, engine: Engine, directory: RunDirectory, settings: Settings) -> None:
    if all(sample.key in directory.done for sample in batch):
        return
    if task.info.scored:
        directory.append(_scored(sample, task, engine) for sample in batch)
        return
    completions = engine.generate(batch[0].method, [request_of(sample, task, settings) for sample in batch])
    completions = [replace(completion, text=task.shortened(completion.text)) for completion in completions]
    directory.append(_record(sample, task, one, [one.text]) for sample, one in zip(batch, completions, strict=True))


def request_of(sample: Sample, task: Task, settings: Settings) -> SampleRequest:
    """What an engine is asked for one sample."""
    return SampleRequest(
        prompt=sample.question.prompt,
        seed=sample_seed(settings.seed, sample.question.task, sample.question.question_id, sample.sample),
        max_new_tokens=settings.max_new_tokens_of(task.info),
        temperature=settings.temperature_of(task.info),
        until=task.info.until,
        conversation=sample.question.conversation,
    )


def _scored(sample: Sample, task: Task, engine: Engine) -> Record:
    """A question whose options are scored. Its text is the option of the highest log-likelihood."""
    started, continuations = time.perf_counter(), sample.question.continuations
    scores = engine.log_likelihoods(sample.method, continuations)
    seconds = time.perf_counter() - started
    log_likelihoods = [log_likelihood for log_likelihood, _ in scores]
    text = continuations[log_likelihoods.index(max(log_likelihoods))][1].strip()
    completion = Completion(text=text, prompt_tokens=0, tokens=0, finished=True, seconds=seconds)
    return {**_record(sample, task, completion, scores), "log_likelihoods": log_likelihoods}


def _record(sample: Sample, task: Task, completion: Completion, replies: Sequence[Reply]) -> Record:
    return {
        **sample.key._asdict(),
        "marks": task.mark({**sample.question.document, "finished": completion.finished}, replies),
        "answer": sample.question.answer,
        "prompt": sample.question.prompt,
        "conversation": list(sample.question.conversation),
        **asdict(completion),
    }

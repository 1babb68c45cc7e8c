"""A run: every method on every question, resumable at any moment."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from kad.evaluation.engine import Completion, Engine, Request
from kad.evaluation.methods import Method, execution_order
from kad.evaluation.results.settings import Settings
from kad.evaluation.results.storage import Record, RunDirectory, SampleKey
from kad.evaluation.tasks.task import Question, Reply, Task

Progress = Callable[[str, int], None]
"""Called with what runs and how many samples are now finished, those of earlier starts included."""


@dataclass(frozen=True)
class Job:
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


def run(
    settings: Settings,
    methods: Sequence[Method],
    tasks: Sequence[Task],
    engine: Engine,
    directory: RunDirectory,
    progress: Progress,
) -> None:
    """Draw every sample that `directory` does not have yet. A finished batch is on disk before the next begins."""
    order = execution_order(methods)
    for position, method in enumerate(order):
        for task in tasks:
            for batch in plan(method, task, engine, settings):
                _run_batch(batch, task, engine, directory, settings)
                progress(f"{task.info.name} · {method.name}", len(batch))
        engine.release(frozenset().union(*(later.needs for later in order[position + 1 :])))


def total_samples(settings: Settings) -> int:
    """How many samples the whole run holds."""
    return len(settings.methods) * sum(settings.samples_of(task) * task.rows for task in settings.tasks)


def plan(method: Method, task: Task, engine: Engine, settings: Settings) -> Iterator[list[Job]]:
    """The batches of a method on a task.

    They depend on the settings only, so a resumed run has the same batches. Rounding depends on the shape of a batch.
    """
    questions = task.questions(engine.renderer(method))
    samples = range(settings.samples_of(task.info))
    jobs = [Job(method, question, sample) for question in questions for sample in samples]
    # Prompts of similar length need less padding. The longest come first: what does not fit in memory fails at once.
    jobs.sort(key=lambda job: (-len(job.question.prompt), job.question.question_id, job.sample))
    size = engine.batch_size(method, settings.batch_size)
    for start in range(0, len(jobs), size):
        yield jobs[start : start + size]


def _run_batch(batch: list[Job], task: Task, engine: Engine, directory: RunDirectory, settings: Settings) -> None:
    if all(job.key in directory.done for job in batch):
        return
    if task.info.scored:
        directory.append(_scored(job, task, engine) for job in batch)
        return
    completions = engine.generate(batch[0].method, [request_of(job, task, settings) for job in batch])
    found = [replace(completion, text=task.shortened(completion.text)) for completion in completions]
    directory.append(_record(job, task, one, [one.text]) for job, one in zip(batch, found, strict=True))


def request_of(job: Job, task: Task, settings: Settings) -> Request:
    """What an engine is asked for one sample."""
    return Request(
        prompt=job.question.prompt,
        seed=sample_seed(settings.seed, job.question.task, job.question.question_id, job.sample),
        max_new_tokens=settings.max_new_tokens_of(task.info),
        temperature=settings.temperature_of(task.info),
        until=task.info.until,
        conversation=job.question.conversation,
    )


def _scored(job: Job, task: Task, engine: Engine) -> Record:
    """A question whose options are scored. Its text is the option of the highest log-likelihood."""
    started, continuations = time.perf_counter(), job.question.continuations
    found = engine.log_likelihoods(job.method, continuations)
    seconds = time.perf_counter() - started
    best = max(range(len(found)), key=lambda index: found[index][0])
    text = continuations[best][1].strip()
    completion = Completion(text=text, prompt_tokens=0, tokens=0, finished=True, seconds=seconds)
    record = _record(job, task, completion, found)
    return {**record, "log_likelihoods": [log_likelihood for log_likelihood, _ in found]}


def _record(job: Job, task: Task, completion: Completion, replies: Sequence[Reply]) -> Record:
    return {
        **job.key._asdict(),
        "marks": task.mark({**job.question.document, "finished": completion.finished}, replies),
        "answer": job.question.answer,
        "prompt": job.question.prompt,
        **asdict(completion),
    }

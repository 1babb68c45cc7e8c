"""A run: every method on every question, resumable at any moment."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from kad.evaluation.engine import Completion, Engine, SampleRequest
from kad.evaluation.methods import Method, execution_order
from kad.evaluation.results.settings import Settings
from kad.evaluation.results.storage import Record, RunDirectory, SampleKey
from kad.evaluation.tasks.task import Question, Reply, Task

Progress = Callable[[str, int], None]
"""Called with what runs and how many samples are now finished, those of earlier starts included."""


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


def plan(method: Method, task: Task, engine: Engine, settings: Settings) -> Iterator[list[Sample]]:
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
    found = [replace(completion, text=task.shortened(completion.text)) for completion in completions]
    directory.append(_record(sample, task, one, [one.text]) for sample, one in zip(batch, found, strict=True))


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
    found = engine.log_likelihoods(sample.method, continuations)
    seconds = time.perf_counter() - started
    best = max(range(len(found)), key=lambda index: found[index][0])
    text = continuations[best][1].strip()
    completion = Completion(text=text, prompt_tokens=0, tokens=0, finished=True, seconds=seconds)
    record = _record(sample, task, completion, found)
    return {**record, "log_likelihoods": [log_likelihood for log_likelihood, _ in found]}


def _record(sample: Sample, task: Task, completion: Completion, replies: Sequence[Reply]) -> Record:
    return {
        **sample.key._asdict(),
        "marks": task.mark({**sample.question.document, "finished": completion.finished}, replies),
        "answer": sample.question.answer,
        "prompt": sample.question.prompt,
        **asdict(completion),
    }

"""How fast methods are, side by side: on the same questions, in alternating order, after a warm-up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kad.errors import UsageError
from kad.evaluation.engine import Engine
from kad.evaluation.evaluate import Plan, make_engine
from kad.evaluation.results.intervals import Means
from kad.evaluation.results.settings import Settings
from kad.evaluation.run import plan as plan_batches
from kad.evaluation.run import request_of
from kad.evaluation.tasks.task import Task, load_tasks

ROUNDS = 8


def measure_speeds(plan: Plan, rounds: int = ROUNDS) -> Means:
    """Tokens a second (rounds, methods) of the methods of a plan. Loads the models.

    Args:
        plan: the methods, the questions and how they are answered.
        rounds: how often each method is timed.

    Raises:
        UsageError: no task whose answers are generated.
    """
    tasks = load_tasks(plan.tasks, limit=plan.limit, data_dir=plan.data_dir, include_path=plan.include_path)
    tasks = [task for task in tasks if not task.info.scored]
    if not tasks:
        raise UsageError(
            "--objective speed needs a task whose answers are generated, but these tasks only score options."
        )
    engine = make_engine(plan)
    speeds = alternating(plan, tasks, engine, plan.settings(tasks), rounds)
    engine.release(())
    return speeds


def alternating(plan: Plan, tasks: Sequence[Task], engine: Engine, settings: Settings, rounds: int) -> Means:
    """See `measure_speeds`.

    In a round every method answers the same batch of questions. Every second round goes through the methods backwards,
    so a machine that grows slower or faster favors none. Before the first round every method answers one batch that
    does not count.
    """
    batches = [
        [(task, batch) for task in tasks for batch in plan_batches(method, task, engine, settings)]
        for method in plan.methods
    ]

    def tokens_per_second(method: int, number: int) -> float:
        task, batch = batches[method][number]
        answers = engine.generate(plan.methods[method], [request_of(job, task, settings) for job in batch])
        return sum(one.tokens for one in answers) / max(sum(one.seconds for one in answers), 1e-9)

    methods = range(len(plan.methods))
    # Spread over all batches: within a task the prompts grow shorter.
    chosen = np.linspace(0, len(batches[0]) - 1, num=rounds).round().astype(int).tolist()
    for method in methods:
        tokens_per_second(method, chosen[0])
    speeds = np.zeros((rounds, len(methods)))
    for place, number in enumerate(chosen):
        for method in methods if place % 2 == 0 else reversed(methods):
            speeds[place, method] = tokens_per_second(method, number)
    return speeds

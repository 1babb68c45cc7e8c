"""lm-evaluation-harness: what kad relies on in it. Nothing of it is imported before a function here asks for it."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

from kad.errors import missing_extra
from kad.hosts.needs import Need, check
from kad.hosts.versions import LM_EVAL, installed

TASK_NEEDS = (
    Need(
        "lm_eval.tasks:TaskManager",
        "finds and loads kad's tasks, with lm-eval's own loader",
        "reading the YAML files here",
        ("include_path", "include_defaults", "metadata"),
    ),
    Need("lm_eval.tasks:TaskManager.load", "loads tasks by name", "the same", ("task_list",)),
    Need("lm_eval.tasks:TaskManager.all_tasks", "the names that there are", "the same"),
    Need("lm_eval.api.task:Task.eval_docs", "the rows of a task", "the same"),
    Need("lm_eval.api.task:ConfigurableTask.process_results", "marks an answer by the task's metric", "the same"),
    Need(
        "lm_eval.api.task:ConfigurableTask.fewshot_context",
        "the prompt of a row",
        "the same",
        ("apply_chat_template", "fewshot_as_multiturn", "chat_template"),
    ),
)
MODEL_NEEDS = (
    Need(
        "lm_eval.models.huggingface:HFLM",
        "runs any task on a model object; a pair is one",
        "an lm_eval.api.model.TemplateLM of our own",
        ("pretrained", "tokenizer", "batch_size"),
    ),
    Need(
        "lm_eval.models.huggingface:HFLM.apply_chat_template",
        "thinking is off in the published prompts",
        "the option enable_thinking=False",
        ("chat_history", "add_generation_prompt"),
    ),
    Need("lm_eval.api.registry:Registry.register", "makes --model kad known", "the entry point alone"),
    Need("lm_eval.__main__:cli_evaluate", "lm-eval's command", "the same"),
)


def task_manager() -> Any:
    """lm-eval's `TaskManager`.

    Raises:
        MissingExtraError: lm-eval is not installed.
        HostError: it is a version that kad cannot work with.
    """
    return _checked("lm_eval.tasks", TASK_NEEDS).TaskManager


def model_class() -> Any:
    """lm-eval's `HFLM`, the model class for Transformers models.

    Raises:
        MissingExtraError: lm-eval is not installed.
        HostError: it is a version that kad cannot work with.
    """
    return _checked("lm_eval.models.huggingface", MODEL_NEEDS).HFLM


def model_registry() -> Any:
    """The names of `--model`, lm-eval's own among them."""
    import_module("lm_eval.models")  # fills the registry, which must not find our name alone
    return import_module("lm_eval.api.registry").model_registry


def command() -> Any:
    """The function behind the command `lm_eval`."""
    return import_module("lm_eval.__main__").cli_evaluate


def _checked(module: str, needs: Iterable[Need]) -> Any:
    if installed(LM_EVAL.package) is None:
        raise missing_extra("eval", "lm-eval")
    check(LM_EVAL, needs)
    return import_module(module)

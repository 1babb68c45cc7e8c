"""lm-evaluation-harness: what kad relies on in it. Nothing of it is imported before a function here asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from kad import hosts
from kad.hosts import LM_EVAL, needs

NEEDS = (
    *needs("lm_eval.tasks", "TaskManager(include_path, include_defaults, metadata)"),
    *needs("lm_eval.tasks:TaskManager", "load(task_list)", "all_tasks", "task_index"),
    *needs("lm_eval.api.task:Task", "eval_docs", "set_fewshot_seed(seed)"),
    *needs(
        "lm_eval.api.task:ConfigurableTask",
        *("aggregation", "doc_to_target", "doc_to_choice", "doc_to_prefix", "apply_filters", "process_results"),
        "construct_requests(doc, ctx)",
        "fewshot_context(apply_chat_template, fewshot_as_multiturn, chat_template, gen_prefix)",
    ),
    *needs("lm_eval.api.instance", "Instance(request_type, doc, arguments, idx, metadata, resps)"),
    *needs("lm_eval.utils", "apply_template(template, doc)", "env"),
    *needs("lm_eval.tasks._yaml_loader", "load_yaml(resolve_func)"),
)
# Apart: importing these loads torch.
MODEL_NEEDS = (
    *needs("lm_eval.models.huggingface", "HFLM(pretrained, tokenizer, batch_size)"),
    *needs("lm_eval.models.huggingface:HFLM", "apply_chat_template(chat_history, add_generation_prompt)"),
    *needs("lm_eval.api.registry:Registry", "register"),
    *needs("lm_eval.__main__", "cli_evaluate"),
)


def check_installed() -> None:
    """Raise MissingExtraError unless lm-eval is installed."""
    hosts.check_installed(LM_EVAL, "lm_eval")


def library() -> Any:
    """The module `lm_eval.tasks`, checked.

    Raises:
        MissingExtraError: lm-eval is not installed.
        HostError: it lacks a name that kad needs.
    """
    library = hosts.library(LM_EVAL, "lm_eval.tasks", NEEDS)
    _sandbox()
    return library


def _sandbox() -> None:
    """Let the templates of tasks be rendered in a sandbox; lm-eval has none. `!function` stays code all the same."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    utils: Any = import_module("lm_eval.utils")
    if not isinstance(utils.env, ImmutableSandboxedEnvironment):
        options = {name: getattr(utils.env, name) for name in ("loader", "undefined", "keep_trailing_newline")}
        sandbox = ImmutableSandboxedEnvironment(**options)
        sandbox.filters.update(utils.env.filters)
        utils.env = sandbox


def marks(task: Any, document: Mapping[str, Any], replies: Sequence[Any]) -> dict[str, Any]:
    """What a task's metrics say of the replies to one question, each of its filters applied.

    Where a task has several filters, a metric is named "metric,filter", as in lm-eval's tables.
    """
    instance = import_module("lm_eval.api.instance").Instance
    kind = "generate_until" if task.config.output_type == "generate_until" else "loglikelihood"
    instances = [
        instance(kind, document, (), index, (task.config.task, 0, 1), [reply]) for index, reply in enumerate(replies)
    ]
    task._instances = instances
    task.apply_filters()
    filters = list(instances[0].filtered_resps)
    by_metric: dict[str, Any] = {}
    for name in filters:
        result = task.process_results(document, [one.filtered_resps[name] for one in instances])
        by_metric |= {metric if len(filters) == 1 else f"{metric},{name}": mark for metric, mark in result.items()}
    return by_metric


def fill_template(template: str, row: Mapping[str, Any]) -> str | None:
    """The field that a template needs and a row lacks, in quotes. None if nothing is lacking."""
    from jinja2 import TemplateError, UndefinedError

    try:
        import_module("lm_eval.utils").apply_template(template, dict(row))
    except UndefinedError as error:
        return str(error).partition(" is undefined")[0]
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError):
        return None  # not the row's fault: the task itself fails with it
    return None


def read_task_file(file: Path) -> str | None:
    """What is wrong with a task file, on one line. None if it can be read."""
    from yaml import YAMLError

    try:
        import_module("lm_eval.tasks._yaml_loader").load_yaml(file, resolve_func=False)
    except (YAMLError, OSError, ValueError, TypeError) as error:
        return " ".join(str(error).split())
    return None


def model_class() -> Any:
    """lm-eval's `HFLM`, the model class for Transformers models. Raises as `library`."""
    return hosts.library(LM_EVAL, "lm_eval.models.huggingface", MODEL_NEEDS).HFLM


def model_registry() -> Any:
    """The names of `--model`, lm-eval's own among them."""
    import_module("lm_eval.models")  # fills the registry, which must not find our name alone
    return import_module("lm_eval.api.registry").model_registry


def command() -> Any:
    """The function behind the command `lm_eval`."""
    return import_module("lm_eval.__main__").cli_evaluate

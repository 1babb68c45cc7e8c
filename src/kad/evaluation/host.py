"""lm-evaluation-harness: what kad relies on in it. Nothing of it is imported before a function here asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from kad.hosts import LM_EVAL, Need, library

TASK_NEEDS = (
    Need(
        "lm_eval.tasks:TaskManager",
        "finds and loads kad's tasks, with lm-eval's own loader",
        "reading the YAML files here",
        ("include_path", "include_defaults", "metadata"),
    ),
    Need("lm_eval.tasks:TaskManager.load", "loads tasks by name", "the same", ("task_list",)),
    Need("lm_eval.tasks:TaskManager.all_tasks", "the names that there are", "the same"),
    Need("lm_eval.tasks:TaskManager.task_index", "the file of a task", "the same"),
    Need("lm_eval.api.task:Task.eval_docs", "the rows of a task", "the same"),
    Need("lm_eval.api.task:Task.set_fewshot_seed", "the same examples for every method", "the same", ("seed",)),
    Need("lm_eval.api.task:ConfigurableTask.aggregation", "which metrics are means", "the same"),
    Need("lm_eval.api.task:ConfigurableTask.doc_to_target", "the answer of a row", "the same"),
    Need("lm_eval.api.task:ConfigurableTask.doc_to_choice", "the options of a row", "the same"),
    Need("lm_eval.api.task:ConfigurableTask.doc_to_prefix", "what an answer begins with", "the same"),
    Need("lm_eval.api.task:ConfigurableTask.apply_filters", "a task's filters of an answer", "the same"),
    Need("lm_eval.api.task:ConfigurableTask.construct_requests", "the options to score", "the same", ("doc", "ctx")),
    Need(
        "lm_eval.api.instance:Instance",
        "an answer as the filters take it",
        "the same",
        ("request_type", "doc", "arguments", "idx", "metadata", "resps"),
    ),
    Need("lm_eval.utils:apply_template", "which field a row lacks", "Jinja alone", ("template", "doc")),
    Need("lm_eval.tasks._yaml_loader:load_yaml", "why a task file is passed over", "saying nothing", ("resolve_func",)),
    Need("lm_eval.api.task:ConfigurableTask.process_results", "marks an answer by the task's metric", "the same"),
    Need(
        "lm_eval.api.task:ConfigurableTask.fewshot_context",
        "the prompt of a row",
        "the same",
        ("apply_chat_template", "fewshot_as_multiturn", "chat_template", "gen_prefix"),
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


def marks(task: Any, document: Mapping[str, Any], replies: Sequence[Any]) -> dict[str, Any]:
    """What a task's metrics say of the replies to one question, each of its filters applied.

    Where a task has several filters, a metric is named "metric,filter", as in lm-eval's tables.
    """
    instance = import_module("lm_eval.api.instance").Instance
    kind = "generate_until" if task.config.output_type == "generate_until" else "loglikelihood"
    given = [
        instance(kind, document, (), index, (task.config.task, 0, 1), [reply]) for index, reply in enumerate(replies)
    ]
    task._instances = given
    task.apply_filters()
    filters = list(given[0].filtered_resps)
    found: dict[str, Any] = {}
    for name in filters:
        result = task.process_results(document, [one.filtered_resps[name] for one in given])
        found |= {metric if len(filters) == 1 else f"{metric},{name}": mark for metric, mark in result.items()}
    return found


def fill_template(template: str, row: Mapping[str, Any]) -> str | None:
    """The field that a template needs and a row lacks, in quotes. None if nothing is lacking."""
    from jinja2 import TemplateError, UndefinedError

    try:
        import_module("lm_eval.utils").apply_template(template, dict(row))
    except UndefinedError as error:
        return str(error).partition(" is undefined")[0]
    except TemplateError:
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
    library(LM_EVAL, "lm_eval", needs)
    return import_module(module)

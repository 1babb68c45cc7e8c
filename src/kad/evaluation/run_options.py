"""The options of a run: which questions, and how answers are made. Plans, stored settings and commands share them.

Importing it is cheap: it needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from kad.engines.load import ENGINES
from kad.errors import UsageError
from kad.method.defaults import TEMPERATURES
from kad.options import SEEDS, Option, check_fields

_SET_BY_KAD = frozenset({"model", "tokenizer", "revision", "dtype", "speculative_config"})


def split_names(text: str) -> tuple[str, ...]:
    """Names separated by commas.

    Raises:
        UsageError: there is none.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise UsageError("--tasks names no task. Try kad_tiny or kad_paper.")
    return names


DataDir = Annotated[
    Path | None, Option("Read the rows of the tasks from JSON lines in DIR, not from the Hugging Face hub.", "DIR")
]


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Which questions.

    Raises:
        UsageError: a value out of its range.
    """

    PANEL: ClassVar[str] = "Tasks"

    tasks: Annotated[
        tuple[str, ...],
        Option("Tasks, separated by commas. kad_paper means the six published ones.", "NAMES", parse=split_names),
    ] = ("kad_tiny",)
    limit: Annotated[int | None, Option("The first N questions of each task.", "N", allowed=">= 1")] = None
    data_dir: DataDir = None
    include_path: Annotated[Path | None, Option("Also know the task files (YAML of lm-eval) in DIR.", "DIR")] = None

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How answers are made. A resumed run must have the same options.

    `temperature` and `max_new_tokens` are None if each task uses its own value. `batch_size` belongs here because
    rounding depends on the shape of a batch.

    Raises:
        UsageError: a value out of its range, or engine options that the engine does not take.
    """

    PANEL: ClassVar[str] = "Running"

    samples: Annotated[int, Option("Answers to each question.", "K", allowed=">= 1", panel="Sampling")] = 1
    seed: Annotated[int, Option("Seed of the run.", "S", allowed=SEEDS, panel="Sampling")] = 0
    temperature: Annotated[
        float | None,
        Option(
            "Temperature on the composed distribution; 0 takes the most probable token.",
            "T",
            "-t",
            allowed=f"0 or {TEMPERATURES}",
            shown="the task's, 1.0",
            panel="Sampling",
        ),
    ] = None
    max_new_tokens: Annotated[
        int | None,
        Option(
            "The most tokens to generate.",
            "N",
            "-n",
            allowed=">= 1",
            shown="the task's, 1024 for the published ones",
            panel="Sampling",
        ),
    ] = None
    batch_size: Annotated[
        int,
        Option("Questions at once, for plain decoding. Speculative decoding takes one at a time.", "N", allowed=">= 1"),
    ] = 8
    engine: Annotated[
        str,
        Option(
            "What runs the models: transformers, llama_cpp (GGUF files), mlx (folders of MLX) or vllm. auto follows "
            "the files of each model.",
            "ENGINE",
            allowed=ENGINES,
        ),
    ] = "auto"
    engine_options: Annotated[
        dict[str, Any],
        Option(
            "An option of llama.cpp (context, threads, ...), or an argument of vllm.LLM (max_model_len, ...). The "
            "value is JSON. May be repeated.",
            "KEY=VALUE",
            name="--engine-option",
        ),
    ] = field(default_factory=dict)
    diagnostics: Annotated[
        bool,
        Option("One more pass over each answer for deferred mass and acceptance (not in the throughput)."),
    ] = True

    def __post_init__(self) -> None:
        check_fields(self)
        if self.engine_options and self.engine in ("transformers", "mlx"):
            raise UsageError(
                f"Engine options are for llama.cpp and vLLM. Leave them out: --engine {self.engine} takes none."
            )
        for name in sorted(self.engine_options.keys() & _SET_BY_KAD) if self.engine == "vllm" else ():
            raise UsageError(f"The engine option {name} is set by the models, the method and --dtype. Leave it out.")

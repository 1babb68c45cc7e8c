"""What a task file of lm-eval says, and what kad eval can do with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from kad.errors import UsageError

# kad draws from pi itself. These values of a task's generation_kwargs ask for just that.
_PLAIN = {"top_k": (0, 50, None), "top_p": (1, 1.0, None), "min_p": (0, 0.0, None), "num_beams": (1, None)}
_READ = frozenset({"until", "do_sample", "temperature", "max_gen_toks", "max_new_tokens"})


def generation(config: Any) -> dict[str, Any]:
    """The settings of an answer, where they ask for draws from pi itself."""
    given: dict[str, Any] = config.generation_kwargs or {}
    for key, value in given.items():
        if key not in _READ and value not in _PLAIN.get(key, ()):
            raise UsageError(
                f"{config.task}: generation_kwargs has {key}={value!r}, but kad eval draws from the distribution "
                f"itself. It takes: {', '.join(sorted(_READ))}."
            )
    return given


def metrics(task: Any) -> frozenset[str]:
    """The metrics that are means over the questions: only those have paired differences."""
    config = task.config
    means = frozenset(name for name, function in task.aggregation().items() if function.__name__ == "mean")
    if config.output_type == "loglikelihood_rolling" or not means:
        raise UsageError(
            f"{config.task} has no metric that is a mean over its questions, which kad eval needs. Run it in lm-eval: "
            f"lm_eval run --model kad --model_args pair=... --tasks {config.task} (docs/evaluation.md, In lm-eval)."
        )
    return means


def texts(given: str | Sequence[str]) -> Sequence[str]:
    """One text, or several, as several."""
    return [given] if isinstance(given, str) else given


def whole(config: Any) -> str:
    """A task file in full, without the place of its rows."""
    kept = {key: value for key, value in config.to_dict().items() if key not in ("metadata", "dataset_kwargs")}
    return json.dumps(kept, sort_keys=True, default=str)


def digest(documents: Sequence[dict[str, Any]], definition: str) -> str:
    """A fingerprint of a task's rows and of its file."""
    hashed = hashlib.sha256(definition.encode())
    for document in documents:
        hashed.update(json.dumps(document, sort_keys=True, ensure_ascii=False, default=str).encode())
    return hashed.hexdigest()

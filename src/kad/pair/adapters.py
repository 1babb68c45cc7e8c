"""Adapters of PEFT (LoRA) in the place of a model: the folder of an adapter, or an unmerged `PeftModel`.

The weights of an adapter are merged into those of its base model when it is loaded. So everything after that sees an
ordinary model.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from kad.errors import PairError, UsageError, first_line, missing_extra
from kad.pair.sources import Source

_FILE = "adapter_config.json"


def adapted(source: Source) -> Source | None:
    """The model that the adapter in a folder changes. None if the folder is no adapter.

    A relative path in the adapter's file is relative to its folder, or else to the current one.

    Raises:
        PairError: the adapter names no model.
    """
    folder = Path(source.model)
    file = folder / _FILE
    if not file.is_file() or (folder / "config.json").is_file():
        return None
    try:
        name = json.loads(file.read_text("utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PairError(
            f"{file} is no adapter's file: it names no base_model_name_or_path. Take the folder as PEFT saved it."
        ) from error
    beside = folder / str(name)
    place = str(beside.resolve()) if beside.is_dir() else str(name)
    try:
        base = Source.parse(place)
    except PairError as error:
        raise PairError(f"The adapter {folder} changes the model {name}, which is not there. {error}") from error
    return Source(base.model, base.revision, source.kwargs)


def merged(model: Any, adapter: Source) -> Any:
    """The model with the weights of an adapter's folder merged in.

    Raises:
        MissingExtraError: PEFT is not installed.
        PairError: an adapter that cannot be merged, or that does not fit the model.
    """
    try:
        from peft import PeftModel
    except ImportError:
        raise missing_extra("peft", "peft") from None
    try:
        with warnings.catch_warnings():
            # PEFT asks every model for a name that Transformers is about to drop.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            adapted_model = PeftModel.from_pretrained(model, adapter.model)
            _untie(adapted_model.get_base_model())
            merged_model = adapted_model.merge_and_unload()
    except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise PairError(f"Cannot merge the adapter {adapter.model}: {first_line(error)}") from error
    merged_model.config._name_or_path = adapter.model
    return merged_model


def _untie(model: Any) -> None:
    """Give the output layer weights of its own, if an adapter changes it or the embeddings, and they share theirs."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    embeddings, head = (getattr(layer, "base_layer", layer) for layer in ends)
    if embeddings.weight is head.weight and any(hasattr(layer, "base_layer") for layer in ends):
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.get_text_config().tie_word_embeddings = False


def share_weights(models: Sequence[torch.nn.Module]) -> None:
    """Let models keep one tensor for the weights in which they are equal. An adapter changes only some of them."""
    for first, second in combinations(models, 2):
        weights = dict(first.named_parameters(remove_duplicate=False))
        for name, weight in list(second.named_parameters(remove_duplicate=False)):
            if name in weights and _equal(weights[name], weight):
                place, _, leaf = name.rpartition(".")
                setattr(second.get_submodule(place), leaf, weights[name])


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    alike = type(one) is type(other) and one.dtype == other.dtype and one.device == other.device
    return alike and not one.is_meta and torch.equal(one, other)


def inner_model(model: Any) -> Any:
    """The Transformers model in a `PeftModel`, its adapter at work; any other object unchanged.

    Raises:
        UsageError: an adapter that is more than changed weights (prompt tuning and its kin).
    """
    adapters = getattr(model, "peft_config", None)
    if not hasattr(model, "get_base_model") or not adapters:
        return model
    if any(getattr(one, "is_prompt_learning", False) for one in adapters.values()):
        raise UsageError("A PeftModel with a learned prompt cannot be composed; kad takes adapters of weights (LoRA).")
    return model.get_base_model()

"""Transformers: the names that its documentation does not promise, and its two names for a cache.

Transformers 5.24 renamed `past_key_values` to `cache` everywhere. kad takes both names from its users and gives
Transformers the one that it knows, which is `CACHE`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import fields
from functools import lru_cache
from typing import Any, cast

import torch

from kad.errors import UsageError
from kad.hosts import TRANSFORMERS, check, moved, needs

try:
    from transformers import Cache, DynamicLayer, GenerationMixin, StaticLayer
    from transformers.cache_utils import CacheLayerMixin
    from transformers.generation.streamers import BaseStreamer
    from transformers.generation.utils import GenerateDecoderOnlyOutput
    from transformers.modeling_outputs import CausalLMOutputWithPast
    from transformers.quantizers import AutoQuantizationConfig
    from transformers.utils.chat_template_utils import render_jinja_template
except ImportError as error:
    raise moved(TRANSFORMERS, error) from error

__all__ = [
    "CACHE", "CACHE_NAMES", "FAR_APART", "AutoQuantizationConfig", "BaseStreamer", "CausalLMOutputWithPast",
    "ComposedGeneration", "GenerateDecoderOnlyOutput", "cache_name", "cache_of", "cache_option", "forget", "goes_back",
    "is_static", "kinds_of_layers", "length_of", "one_cache_name", "parameters_of", "record_past",
    "render_jinja_template", "restore", "save", "takes_cache",
]  # fmt: skip

NEEDS = (
    *needs(
        "transformers:GenerationMixin",
        # ComposedGeneration overrides these three.
        "_extract_generation_mode_kwargs(custom_generate, kwargs, synced_gpus, assistant_model, streamer)",
        "_prepare_cache_for_generation(generation_config, model_kwargs)",
        "prepare_inputs_for_generation(input_ids)",
        # Transformers compares the parameters of a `custom_generate` with those of this one.
        "_sample(input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus, streamer)",
        # Whether a model takes the caches of Transformers.
        "_supports_default_dynamic_cache()",
    ),
    # These act on `layers`, which KadCache makes of the caches of all models.
    *needs("transformers:Cache", "crop", "get_seq_length", "reorder_cache", "reset", "activate_past_recording"),
    *needs("transformers:DynamicLayer", "crop(tokens_to_remove)"),
    *needs("transformers.cache_utils:DynamicSlidingWindowLayer", "activate_past_recording"),
    *needs(
        "transformers.utils.chat_template_utils",
        "render_jinja_template(conversations, chat_template, add_generation_prompt)",
    ),
)

# The names of the cache among a model's arguments and outputs: since 5.24, until 5.23, and Mamba's until 5.23.
CACHE_NAMES = ("cache", "past_key_values", "cache_params")


def cache_name(names: Iterable[str]) -> str | None:
    """The name of the cache among these names. None if there is none."""
    names = set(names)
    return next((name for name in CACHE_NAMES if name in names), None)


def _cache_name_of_outputs() -> str:
    name = cache_name(field.name for field in fields(CausalLMOutputWithPast))
    if name is None:
        raise moved(TRANSFORMERS, f"a cache named {' or '.join(CACHE_NAMES[:2])} in CausalLMOutputWithPast")
    return name


check(TRANSFORMERS, NEEDS)

CACHE = _cache_name_of_outputs()
"""The installed Transformers' name of the cache, in `forward`, in `generate` and in their outputs."""


@lru_cache(maxsize=64)
def parameters_of(forward: Callable[..., Any]) -> frozenset[str]:
    """The names of the arguments of a `forward`."""
    return frozenset(inspect.signature(forward).parameters)


def cache_option(model: Any) -> str:
    """The name of the cache among the arguments of a model's forward."""
    return cache_name(parameters_of(type(model).forward)) or CACHE


def takes_cache(model: GenerationMixin) -> bool:
    """Whether a model fills a cache of Transformers' own kinds."""
    return bool(model._supports_default_dynamic_cache())


def cache_of(output: Any) -> Any:
    """The cache in the output of a model or of `generate`."""
    return getattr(output, CACHE)


def one_cache_name(options: Mapping[str, Any]) -> dict[str, Any]:
    """The same options, the cache under the name `CACHE`.

    Raises:
        UsageError: the cache is given under two names.
    """
    names = [name for name in CACHE_NAMES[:2] if options.get(name) is not None]
    if len(names) > 1:
        raise UsageError(f"A cache was given twice, as {' and as '.join(names)}. Give it once, as {CACHE}.")
    renamed = {key: value for key, value in options.items() if key not in CACHE_NAMES[:2]}
    return renamed | {CACHE: options[names[0]]} if names else renamed


def length_of(cache: Cache, unknown: int | None = None) -> int | None:
    """How many tokens a cache holds. `unknown` if it has read some, and has only layers that do not count."""
    counting = next((layer for layer in cache.layers if isinstance(layer, CacheLayerMixin)), None)
    if counting is not None:
        return int(cast("int", counting.get_seq_length()))
    states = [layer.has_previous_state for layer in cache.layers if hasattr(layer, "has_previous_state")]
    return unknown if any(any(state.values()) if isinstance(state, dict) else state for state in states) else 0


def is_static(cache: Cache) -> bool:
    """Whether a cache has static layers of keys and values."""
    return any(isinstance(layer, StaticLayer) for layer in cache.layers)


FAR_APART = {
    "DogeForCausalLM": "in a long text, what it says of a token depends on later tokens",
    "MoshiForCausalLM": "its cache drops tokens that its attention still sees",
}
"""Models that read a long text with a cache otherwise than without one, and why. A short trial cannot show it;
`tests/test_architectures.py` finds them."""


# Layers whose keys and values can be cut at any length: these, and one that keeps a recurrent state beside them.
_CROPPABLE = frozenset({"DynamicLayer", "DynamicIndexedLayer", "DummyLayer", "StaticLayer"})
_CROPPABLE_IN_PART = "LinearAttentionAndFullAttentionLayer"
_RECORDING = "DynamicSlidingWindowLayer"  # can drop the tokens of a window, if it was told to record them


def kinds_of_layers(cache: Cache) -> frozenset[str]:
    """The names of the classes of its layers."""
    return frozenset(type(layer).__name__ for layer in cache.layers)


def goes_back(cache: Cache) -> bool:
    """Whether the cache can drop the tokens of a window. Recurrent layers cannot."""
    return kinds_of_layers(cache) <= {*_CROPPABLE, _RECORDING}


def record_past(cache: Cache, on: bool) -> bool:
    """Turn the recording of dropped cache states on or off. Returns whether there are layers that drop states.

    Sliding-window layers drop states that they no longer need. If they are told to wait for a crop, they need one after
    every window, even a crop by zero tokens.
    """
    layers = [layer for layer in cache.layers if hasattr(layer, "record_past")]
    for layer in layers:
        if on:
            layer.activate_past_recording()
        else:
            layer.record_past = False
    return bool(layers)


def forget(cache: Cache, count: int) -> None:
    """Take the last `count` tokens out of a cache that goes back."""
    for layer in cache.layers:
        _crop(layer, count)


def save(cache: Cache) -> list[dict[str, Any]]:
    """Copies of what cannot be cut in the layers of a cache."""
    return [_state(layer) for layer in cache.layers]


def restore(cache: Cache, saved: list[dict[str, Any]], count: int) -> None:
    """Take the last `count` tokens out of a cache, given what was saved before they were read."""
    del cache.layers[len(saved) :]  # made since then
    for layer, state in zip(cache.layers, saved, strict=True):
        if type(layer).__name__ in _CROPPABLE:
            _crop(layer, count)
        elif type(layer).__name__ == _CROPPABLE_IN_PART:
            DynamicLayer.crop(layer, -count)
        vars(layer).update(_copy(state))


def _crop(layer: Any, count: int) -> None:
    if hasattr(layer, "crop"):
        layer.crop(-count)
    elif layer.is_initialized:  # a static layer: what lies past the length is masked until it is written over
        layer.cumulative_length.sub_(count)


def _state(layer: Any) -> dict[str, Any]:
    if type(layer).__name__ in _CROPPABLE:
        return {}
    cut = ("keys", "values") if type(layer).__name__ == _CROPPABLE_IN_PART else ()
    return {name: _copy(value) for name, value in vars(layer).items() if name not in cut}


def _copy(value: Any) -> Any:
    """A copy that shares nothing. `deepcopy` alone takes long for tensors."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    return {key: _copy(item) for key, item in value.items()} if type(value) is dict else deepcopy(value)


class ComposedGeneration(GenerationMixin):
    """Transformers' `generate` for a model made of several models, each with a cache of its own."""

    # Which attention implementations may be asked for; each model checks for itself whether it has it.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def take_cache(self, cache: Any) -> Any:
        """The cache that a user gave to `generate`, checked."""
        raise NotImplementedError

    def join_caches(self, make: Callable[[Any], Any]) -> Any:
        """The caches that `make(model)` gives for the models that must run, as one."""
        raise NotImplementedError

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """One cache for each model, made by the model itself (dynamic, static, offloaded or quantized)."""

        def make(model: Any) -> Any:
            own: dict[str, Any] = {}
            model._prepare_cache_for_generation(generation_config, own, *args, **kwargs)
            cache = next((value for value in own.values() if isinstance(value, Cache)), None)
            if cache is None:
                raise UsageError(f"{type(model).__name__} has no key-value cache. Generate with use_cache=False.")
            return cache

        if model_kwargs.get(CACHE) is not None:
            model_kwargs[CACHE] = self.take_cache(model_kwargs[CACHE])
            super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        elif generation_config.use_cache is not False:
            model_kwargs[CACHE] = self.join_caches(make)

    def _extract_generation_mode_kwargs(
        self, custom_generate: Any, kwargs: dict[str, Any], synced_gpus: Any, assistant_model: Any, streamer: Any
    ) -> dict[str, Any]:
        """As in Transformers, which drops streamer and tokenizer (for stop strings) where `custom_generate` is a
        callable: a callable that takes them gets them."""
        dropped = {"streamer": streamer, "tokenizer": kwargs.get("tokenizer"), "assistant_model": assistant_model}
        options: dict[str, Any] = super()._extract_generation_mode_kwargs(
            custom_generate, kwargs, synced_gpus, assistant_model, streamer
        )
        if callable(custom_generate):
            parameters = inspect.signature(custom_generate).parameters
            options |= {key: value for key, value in dropped.items() if value is not None and key in parameters}
        return options

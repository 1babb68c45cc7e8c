"""One forward pass of one model, and the trial that shows how the model may be read.

A model may take a cache and not use it, count positions in a way of its own, look ahead, or forget its state when it
reads several tokens at once. All of this shows in one comparison: what the model says of a few tokens that it reads in
one pass, and of the same tokens read in parts. The trial takes a few short passes, once for each model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from kad.engines.transformers.host import (
    FAR_APART,
    cache_option,
    is_static,
    length_of,
    parameters_of,
    takes_cache,
)
from kad.errors import KadError, PairError, UsageError, one_line
from kad.pair.model_files import rope_turns

# How far two ways of reading may differ by rounding, as a part of the spread of the logits: in float32, and in half
# precision. One row of three may be further away, as rounding may turn the choice of an expert.
_FINE, _COARSE, _FEW = 2e-3, 0.1, 0.34
_TOKENS, _FIRST, _PADDING = 8, 3, 2


def run_part(
    model: PreTrainedModel,
    input_ids: Tensor,
    cache: Any = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    logits_to_keep: int | Tensor = 0,
    **others: Tensor,
) -> Tensor:
    """The logits of one model (batch, kept positions, vocab) on its own device. Fills `cache` if there is one.

    `others` are further tensors that its `forward` takes.

    Raises:
        UsageError: read in parts, the model says something else than in one pass; see `Trial`.
    """
    count = input_ids.shape[1]
    if cache is not None:
        _check_turn(model, length_of(cache) or 0, count)
    if cache is None or count == 1 or not length_of(cache, unknown=1) or Trial.of(model, is_static(cache)).chunks:
        return _forward(model, input_ids, cache, attention_mask, position_ids, logits_to_keep, **others)
    rows = []
    for index in range(count):
        mask = None if attention_mask is None else attention_mask[:, : attention_mask.shape[1] - count + index + 1]
        place = None if position_ids is None else position_ids[:, index : index + 1]
        rows.append(_forward(model, input_ids[:, index : index + 1], cache, mask, place, **others))
    return _kept(torch.cat(rows, dim=1), logits_to_keep)


def _check_turn(model: PreTrainedModel, past: int, count: int) -> None:
    """Refuse to go on with a cache where the rotary frequencies change."""
    long, dynamic = (rope_turns(model.config, kind) for kind in ("longrope", "dynamic"))
    if (long is not None and 0 < past <= long < past + count) or (dynamic is not None and past + count > dynamic):
        raise UsageError(
            f"{type(model).__name__} changes its rotary frequencies at a length of {long or dynamic} tokens, and what "
            "it has read before is stale. Stay below, begin with a longer prompt, or use kad.generate."
        )


def _forward(
    model: PreTrainedModel,
    input_ids: Tensor,
    cache: Any = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    logits_to_keep: int | Tensor = 0,
    **others: Tensor,
) -> Tensor:
    device = model.device
    parameters = parameters_of(type(model).forward)
    options: dict[str, Any] = {"use_cache": cache is not None, "return_dict": True, **others}
    if cache is not None:
        options[cache_option(model)] = cache
    recurrent = cache is not None and length_of(cache) is None  # it has read the padding, which a mask hides from it
    if attention_mask is not None and not recurrent:
        options["attention_mask"] = attention_mask.to(device)
    if "position_ids" in parameters and cache is not None and position_ids is None:
        position_ids = _positions(input_ids, cache, attention_mask)  # some models count them wrongly themselves
    if position_ids is not None and "position_ids" in parameters:
        options["position_ids"] = position_ids.to(device)
    if "logits_to_keep" in parameters:
        options["logits_to_keep"] = logits_to_keep
    logits: Tensor = model(input_ids.to(device), **options).logits
    return logits if "logits_to_keep" in parameters else _kept(logits, logits_to_keep)


def _positions(ids: Tensor, cache: Cache, mask: Tensor | None) -> Tensor | None:
    count = ids.shape[1]
    if mask is not None:
        return (mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, -count:]
    past = length_of(cache)
    return None if past is None else torch.arange(past, past + count).unsqueeze(0)


def _kept(logits: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    if isinstance(logits_to_keep, Tensor):
        return logits[:, logits_to_keep.to(logits.device)]
    return logits[:, -logits_to_keep:] if logits_to_keep else logits


def check_kind(model: PreTrainedModel) -> None:
    """Refuse what is no causal language model with a cache, by its class and configuration.

    Raises:
        PairError: it is another kind of model.
    """
    name, config = type(model).__name__, model.config
    if not model.can_generate():
        reason = "it has no output layer that writes text"
    elif config.is_encoder_decoder:
        reason = "it is an encoder-decoder, and kad composes decoders"
    elif not takes_cache(model):
        reason = "it takes no cache of Transformers' own kinds"
    elif name in FAR_APART:
        reason = FAR_APART[name]
    else:
        return
    raise PairError(f"{name} cannot be composed: {reason}. Take a causal language model.")


_TRIALS: WeakKeyDictionary[PreTrainedModel, dict[bool, Trial]] = WeakKeyDictionary()


class Trial:
    """What a model says of a few tokens that it reads in parts, against the same tokens in one pass.

    Args:
        model: the model.
        static: try it with a static cache, and not with a dynamic one.
    """

    def __init__(self, model: PreTrainedModel, static: bool) -> None:
        self._model, self._static = model, static
        self._name, self._cache = type(model).__name__, "static cache" if static else "cache"
        vocab = model.config.get_text_config().vocab_size
        self._ids = (torch.arange(_TOKENS, device=model.device) * 7 + vocab // 2).remainder(vocab).unsqueeze(0)

    @classmethod
    def of(cls, model: PreTrainedModel, static: bool = False) -> Trial:
        """The trial of a model, made once."""
        known = _TRIALS.setdefault(model, {})
        if static not in known:
            known[static] = cls(model, static)
        return known[static]

    def check(self) -> None:
        """Refuse a model that its cache changes; see `chunks`."""
        assert self.chunks is not None

    @cached_property
    def chunks(self) -> bool:
        """Whether the model may read several tokens at once after others. If not, it reads one at a time.

        Raises:
            UsageError: in neither way it says the same as in one pass.
        """
        if self._agrees(_FIRST, _TOKENS - _FIRST - 1, 1):
            # Rounding in half precision may hide that a state of few tokens was forgotten.
            return not self._recurrent or self._is_fine
        if self._agrees(_FIRST, *[1] * (_TOKENS - _FIRST)):
            return False
        raise UsageError(
            f"{self._name} cannot be composed: what it says of a text that it reads in parts, with a {self._cache}, "
            "differs from what it says of the whole text. Take a causal language model."
        )

    @cached_property
    def padding(self) -> bool:
        """Whether padding on the left changes nothing."""
        self.check()
        return self._agrees(_FIRST + _PADDING, 1, 1, 1, padding=_PADDING)

    @cached_property
    def _whole(self) -> Tensor:
        with torch.no_grad():
            logits: Tensor = attempt(self._model, "text", lambda: self._model(self._ids, use_cache=False).logits)
        return logits[0]

    @property
    def _is_fine(self) -> bool:
        return torch.finfo(self._model.dtype).bits >= 32

    @torch.no_grad()
    def _agrees(self, *parts: int, padding: int = 0) -> bool:
        kind: Any = StaticCache if self._static else DynamicCache
        room = {"max_cache_len": 2 * _TOKENS} if self._static else {}
        new = partial(kind, config=self._model.config, **room)
        cache, other = (attempt(self._model, self._cache, new) for _ in range(2))
        ids = torch.cat((self._ids[:, :1].expand(1, padding), self._ids), dim=-1)
        mask = (torch.arange(ids.shape[1], device=ids.device) >= padding).long().unsqueeze(0)
        rows, start = [], 0
        for size in parts:
            end = start + size
            seen = mask[:, :end] if padding else None
            read = partial(_forward, self._model, ids[:, start:end], cache, seen)
            rows.append(attempt(self._model, self._cache, read)[0])
            start = end
            # Another answer is read in between: a state that the model keeps outside of the cache would mix the two.
            attempt(self._model, self._cache, partial(_forward, self._model, ids[:, -1:], other))
            if length_of(cache, unknown=end) != end:
                raise UsageError(
                    f"{self._name} cannot be composed: it does not fill the {self._cache} that it is given, which "
                    f"holds {length_of(cache)} tokens after {end} were read."
                )
        found = torch.cat(rows)[padding:]
        whole = self._whole[: len(found)]
        self._recurrent = length_of(cache) is None
        allowed = _FINE if self._is_fine else _COARSE
        spread = (whole - whole.mean(dim=-1, keepdim=True)).float().norm(dim=-1)
        far = ((found - whole).float().norm(dim=-1) > allowed * spread).float()
        return bool(far[:_FIRST].mean() <= _FEW and far[_FIRST:].mean() <= _FEW)


def attempt(model: PreTrainedModel, what: str, do: Callable[[], Any]) -> Any:
    """What `do` gives. An error of a model that cannot do it becomes a sentence.

    Raises:
        UsageError: the model cannot run with this.
    """
    try:
        return do()
    except (KadError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UsageError(
            f"{type(model).__name__} cannot be composed: it does not run with a {what} ({one_line(error)})."
        ) from error

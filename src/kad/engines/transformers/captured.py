"""Captured forwards: a static cache of fixed addresses, and one compiled forward pass for each of a few shapes.

Small forward passes wait for the host: a GPU is faster than the launches of its many operations. A captured pass is one
launch. On CUDA it is a CUDA graph, elsewhere the compiled code alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from kad.engines.transformers.host import cache_option, forget, kinds_of_layers
from kad.errors import UsageError, first_line
from kad.tokens.vocabulary import trim

# The backend of torch.compile: True is PyTorch's own one.
Backend = bool | str | Callable[..., Any]
# Caches are as long as a power of two, at least this one. So prompts of other lengths find the same graphs.
_SHORTEST = 512


class Capture:
    """One model with a static cache and compiled forward passes. One generation uses it at a time.

    Args:
        model: the model.
        capacity: how many tokens the cache holds.
        shapes: how many tokens a captured pass reads.
        backend: see `Backend`.

    Raises:
        UsageError: the model has no static cache that rolls back, or cannot be compiled here.
    """

    def __init__(self, model: PreTrainedModel, capacity: int, shapes: Sequence[int], backend: Backend) -> None:
        self.free: list[Capture] = []
        self.shapes = tuple(sorted(set(shapes)))
        self._model = model
        self._cache = StaticCache(config=model.config, max_cache_len=capacity)
        if others := sorted(kinds_of_layers(self._cache) - {"StaticLayer"}):
            raise UsageError(
                f"Captured forwards need plain static caches, but {type(model).__name__} has {', '.join(others)}. "
                "Decode without compile."
            )
        self._graphs = model.device.type == "cuda" and backend in (True, "inductor")
        options: dict[str, Any] = {"backend": "inductor" if backend is True else backend, "dynamic": False}
        if self._graphs:
            options["mode"] = "reduce-overhead"
        self._forwards = {shape: torch.compile(self._own_forward(shape), **options) for shape in self.shapes}
        self._capture()

    def read(self, ids: Tensor) -> Tensor:
        """Read ids (n,), the captured way if n is one of the shapes. Returns logits (n, vocab), to be copied."""
        forward = self._forwards.get(ids.shape[0], self._forward)
        if self._graphs:
            begin: Callable[..., None] = torch.compiler.cudagraph_mark_step_begin
            begin()
        return forward(ids.unsqueeze(0).to(self._model.device))[0]

    def forget(self, count: int) -> None:
        """Drop the last `count` tokens."""
        if count:
            forget(self._cache, count)

    def give_back(self) -> None:
        """Drop all tokens, and wait among the captures of this kind."""
        self._cache.reset()
        self.free.append(self)

    def _own_forward(self, shape: int) -> Callable[[Tensor], Tensor]:
        """The forward pass with a code object of its own.

        torch.compile counts the shapes of one code object, and gives up after a few: all models of all pairs share one.
        """
        model, options = self._model, {cache_option(self._model): self._cache, "use_cache": True, "return_dict": True}

        def forward(ids: Tensor) -> Tensor:
            logits: Tensor = model(ids, **options).logits
            return logits

        self._forward = forward
        code = forward.__code__.replace(co_name=f"forward_of_{shape}")
        return FunctionType(code, forward.__globals__, code.co_name, None, forward.__closure__)

    @torch.no_grad()
    def _capture(self) -> None:
        """Compile everything now, on tokens that are then forgotten."""
        token = torch.zeros(max(self.shapes), dtype=torch.long, device=self._model.device)
        self._forward(token[:1].unsqueeze(0))  # the cache takes its place in memory outside of the compiled code
        try:
            for shape in self.shapes:
                for _ in range(3 if self._graphs else 1):  # CUDA graphs are recorded at the second run
                    self._cache.reset()
                    self.read(token[:shape])
        except RuntimeError as error:
            raise UsageError(
                f"The forward pass of {type(self._model).__name__} cannot be compiled here: {first_line(error)} "
                "Decode without compile."
            ) from error
        self._cache.reset()


class Captures:
    """The captures of a pair that nobody uses at the moment. A copy of a pair starts without any."""

    def __init__(self) -> None:
        self._free: dict[Any, list[Capture]] = {}

    def __reduce__(self) -> Any:
        return Captures, ()

    def take(self, model: PreTrainedModel, capacity: int, shapes: Sequence[int], backend: Backend) -> Capture:
        """An empty capture with room for `capacity` tokens."""
        size = max(_SHORTEST, 1 << (capacity - 1).bit_length())
        kind = id(model), model.device, model.dtype, size, tuple(shapes), backend
        free = self._free.setdefault(kind, [])
        capture = free.pop() if free else Capture(model, size, shapes, backend)
        capture.free = free
        return capture


class CapturedModel:
    """A scorer (`kad.method.scorer.Scorer`) whose forward passes are captured.

    The prompt is read in an ordinary pass. All later passes have one of the shapes: what is shorter is filled up, and
    what was filled in is forgotten at once. A model sees only what stands before a token, so this changes nothing.

    Args:
        capture: the passes. `release` gives them away.
        vocab_size: the size of the common vocabulary. Later rows are cut off.
        device: the device of the logits.
    """

    reversible = False  # since `release` gives the cache away

    def __init__(self, capture: Capture, vocab_size: int, device: torch.device) -> None:
        self.processed = 0
        self._capture: Capture | None = capture
        self._vocab, self._device = vocab_size, device

    def advance(self, ids: Tensor, keep: int) -> Tensor:
        capture = self._capture
        if capture is None:
            raise UsageError("This scorer was released: its cache belongs to another generation by now.")
        self.processed += ids.shape[0]
        if ids.shape[0] > capture.shapes[-1] and ids.shape[0] > keep:
            capture.read(ids[:-keep])
            ids = ids[-keep:]
        count = ids.shape[0]
        filling = min((shape - count for shape in capture.shapes if shape >= count), default=0)
        logits = capture.read(torch.nn.functional.pad(ids, (0, filling)))[count - keep : count].clone()
        capture.forget(filling)
        return trim(logits, self._vocab).to(self._device)

    def rollback(self, length: int) -> None:
        surplus = max(self.processed - length, 0)
        if self._capture is not None:
            self._capture.forget(surplus)
        self.processed -= surplus

    def release(self) -> None:
        """Give the cache and the captured passes to the next generation."""
        if self._capture is not None:
            self._capture.give_back()
            self._capture = None

"""The engine of llama.cpp: GGUF files, through the low-level functions of llama-cpp-python.

A scorer is one context of llama.cpp with one sequence. Logits are computed only at the positions that are asked for.
A context that is not used any more goes back to its model, which gives it to the next scorer.
"""

from __future__ import annotations

import ctypes
import weakref
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from kad.engines.llama_cpp.host import CACHE_TYPES, forget_messages, library, reason
from kad.engines.llama_cpp.tokenizer import GgufTokenizer
from kad.engines.protocols import Facts, OneAtATime
from kad.errors import OptionError, PairError, UsageError
from kad.method.replay import Replay
from kad.method.scorer import Scorer
from kad.options import Option, check_fields
from kad.pair.gguf import check_gguf
from kad.tokens.vocabulary import trim
from kad.words import counted

CONTEXT = 4096
"""The positions of a context, if the caller does not say and the model supports as many."""
_BATCH = 512  # tokens that llama.cpp reads at once
_PARTIAL = 1  # llama.cpp's flag LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY: what is no key and no value of attention
_ROWS = 64  # rows of logits that it keeps at once: 39 MB with 152,000 tokens


@dataclass(frozen=True)
class LlamaCppOptions:
    """How llama.cpp runs a model.

    Raises:
        UsageError: a value out of its range.
    """

    context: Annotated[int | None, Option("Positions of a text, prompt included.", allowed=">= 1")] = None
    gpu_layers: Annotated[int | None, Option("Layers on the GPU, if llama.cpp was built for one.", allowed=">= 0")] = (
        None
    )
    threads: Annotated[int | None, Option("Threads of the processor.", allowed=">= 1")] = None
    flash_attention: Annotated[bool | None, Option("Whether to use flash attention.")] = None
    cache_type: Annotated[str | None, Option("Numbers of the key-value cache.", allowed=tuple(CACHE_TYPES))] = None

    def __post_init__(self) -> None:
        for name, kind in {"context": int, "gpu_layers": int, "threads": int, "flash_attention": bool}.items():
            value = getattr(self, name)
            if value is not None and type(value) is not kind:
                words = "a whole number" if kind is int else "true or false"
                raise OptionError(f"The option {name} of llama.cpp must be {words}, but is {value!r}.")
        check_fields(self)


class LlamaCppModel(OneAtATime):
    """One GGUF file that llama.cpp runs; see `kad.engines.protocols.Model`.

    Args:
        path: the file.
        options: how to run it.

    Raises:
        PairError: llama.cpp cannot load the file; the message has its reason.
        MissingExtraError: llama-cpp-python is not installed.
    """

    def __init__(self, path: Path, options: LlamaCppOptions | None = None) -> None:
        self.path, self.options = path, options or LlamaCppOptions()
        self._lib = library()
        self._weights = _Weights(self._lib, path, self.options)
        self._model = self._weights.pointer
        template = self._lib.llama_model_chat_template(self._model, None)
        self.tokenizer = GgufTokenizer(
            self._lib,
            self._lib.llama_model_get_vocab(self._model),
            None if template is None else template.decode(),
            path,
            owner=self._weights,
        )
        self.vocab_size = len(self.tokenizer)
        self._longest = self._exact_length()
        self.context_length = min(self.options.context or CONTEXT, self._longest)
        self.give_back(self.take_context())  # what cannot be run is refused now

    @property
    def is_recurrent(self) -> bool:
        """Whether it has recurrent layers, whose state cannot drop tokens."""
        return bool(self._lib.llama_model_is_recurrent(self._model) or self._lib.llama_model_is_hybrid(self._model))

    @cached_property
    def facts(self) -> Facts:
        """`context_length` is that of the contexts that are made."""
        words = ctypes.create_string_buffer(128)
        self._lib.llama_model_desc(self._model, words, len(words))
        return Facts(
            parameters=int(self._lib.llama_model_n_params(self._model)),
            context_length=self.context_length,
            engine="llama_cpp",
            weight_bytes=int(self._lib.llama_model_size(self._model)),
            weights=words.value.decode(errors="replace").split(" ", 2)[-1].removeprefix("(guessed) "),
            grows=self.context_length < self._longest,
            tokenizer_in_file=True,
            soft_cap=self._number("final_logit_softcapping") or None,
        )

    def _exact_length(self) -> int:
        """Up to which length llama.cpp gives what the file says.

        Of most architectures it leaves a sliding window out. Of two lists of rotary factors, for short and for long
        texts, it takes one for a whole context: up to this length, the short ones.
        """
        window = 0 if self._lib.llama_model_n_swa(self._model) else self._number("attention.sliding_window")
        turn = 0 if self._said("rope.scaling.type") == "yarn" else self._number("rope.scaling.original_context_length")
        trained_for = int(self._lib.llama_model_n_ctx_train(self._model))
        return int(min(limit for limit in (trained_for, window, turn) if limit))

    def _number(self, key: str) -> float:
        try:
            return float(self._said(key))
        except ValueError:  # nothing, or a list
            return 0.0

    def _said(self, key: str) -> str:
        """What the file says of its architecture under a key; "" for nothing."""
        architecture = self._meta("general.architecture")
        return self._meta(f"{architecture}.{key}")

    def _meta(self, key: str) -> str:
        words = ctypes.create_string_buffer(128)
        found = self._lib.llama_model_meta_val_str(self._model, key.encode(), words, len(words))
        return words.value.decode(errors="replace") if found >= 0 else ""

    @cached_property
    def generation_config(self) -> GenerationConfig:
        """The tokens that end a text, as the file names them. A GGUF file has no other settings."""
        return GenerationConfig(
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.end_token_ids or None,
            pad_token_id=self.tokenizer.pad_token_id,
        )

    def scorer(self, vocab_size: int, device: torch.device) -> Scorer:
        scorer = LlamaCppScorer(self, vocab_size, device)
        return Replay(scorer) if self.is_recurrent else scorer

    def take_context(self) -> Any:
        """An empty context of llama.cpp.

        Raises:
            UsageError: there is no room for it.
            PairError: the model reads a text from both sides.
        """
        with suppress(IndexError):  # another thread may take the last one
            context = self._weights.contexts.pop()
            self._lib.llama_memory_clear(self._lib.llama_get_memory(context), False)
            return context
        forget_messages()
        context = self._lib.llama_init_from_model(self._model, self._context_params())
        if not context:
            raise UsageError(
                f"llama.cpp cannot make a context of {counted(self.context_length, 'position')} for {self.path.name}: "
                f"{reason()}. Try a smaller `context`, or another `cache_type`."
            )
        if not self._lib.llama_get_causal_attn(context):
            self._lib.llama_free(context)
            raise PairError(f"{self.path} is no causal language model: what it says of a token depends on later ones.")
        return context

    def give_back(self, context: Any) -> None:
        """Keep a context for the next scorer."""
        self._weights.contexts.append(context)

    def _context_params(self) -> Any:
        params, options = self._lib.llama_context_default_params(), self.options
        params.n_ctx = self.context_length
        params.n_batch = params.n_ubatch = min(_BATCH, self.context_length)
        params.n_outputs_max = min(_ROWS, self.context_length)
        params.n_threads = params.n_threads_batch = options.threads or torch.get_num_threads()
        params.swa_full = True  # layers with a sliding window keep everything, so that they can go back
        if options.flash_attention is not None:
            params.flash_attn_type = int(options.flash_attention)
        if options.cache_type is not None:
            params.type_k = params.type_v = CACHE_TYPES[options.cache_type]
        return params


class _Weights:
    """A loaded file and its unused contexts. It is freed when neither the model nor the tokenizer needs it."""

    def __init__(self, lib: Any, path: Path, options: LlamaCppOptions) -> None:
        self.pointer = _load(lib, path, options)
        self.contexts: list[Any] = []
        weakref.finalize(self, _free, lib, self.pointer, self.contexts)


class LlamaCppScorer:
    """A model with one context; see `kad.method.scorer.Scorer`. With recurrent layers it saves and restores."""

    reversible = True

    def __init__(self, model: LlamaCppModel, vocab_size: int, device: torch.device) -> None:
        self.processed = 0
        self._model, self._lib, self._vocab, self._device = model, library(), vocab_size, device
        self._context = model.take_context()
        self._memory = self._lib.llama_get_memory(self._context)
        weakref.finalize(self, model.give_back, self._context)
        self._batch = _Batch(self._lib, min(_BATCH, model.context_length))

    def advance(self, ids: Tensor, keep: int) -> Tensor:
        """Read ids (n,). Returns logits (keep, vocab) at the last `keep` ids.

        Raises:
            UsageError: the context is full, or llama.cpp fails.
        """
        tokens = ids.tolist()
        if self.processed + len(tokens) > self._model.context_length:
            raise UsageError(
                f"The text has {counted(self.processed + len(tokens), 'token')}; the context of "
                f"{self._model.path.name} holds {self._model.context_length}. Raise the option `context` of its engine."
            )
        rows = torch.empty(keep, self._model.vocab_size)
        first, start = len(tokens) - keep, 0
        while start < len(tokens):
            row_start = max(start, first)
            end = min(start + self._batch.size, row_start + _ROWS, len(tokens))
            self._batch.fill(tokens[start:end], self.processed, row_start - start)
            self._decode(end - start)
            if end > row_start:
                rows[row_start - first : end - first] = self._logits(end - row_start)
            start = end
        return trim(rows, self._vocab).to(self._device)

    def rollback(self, length: int) -> None:
        if length < self.processed:
            self._cut(length)

    def save(self) -> Any:
        """See `kad.method.replay`: the recurrent state alone, as keys and values can be cut."""
        size = self._lib.llama_state_seq_get_size_ext(self._context, 0, _PARTIAL) if self.processed else 0
        state = (ctypes.c_uint8 * size)()
        if size != (size and self._lib.llama_state_seq_get_data_ext(self._context, state, size, 0, _PARTIAL)):
            raise UsageError(f"llama.cpp cannot copy the state of {self._model.path.name}: {reason()}.")
        return self.processed, state

    def restore(self, saved: Any) -> None:
        """See `kad.method.replay`."""
        length, state = saved
        if state and not self._lib.llama_state_seq_set_data_ext(self._context, state, len(state), 0, _PARTIAL):
            raise UsageError(f"llama.cpp cannot put the state of {self._model.path.name} back: {reason()}.")
        self._cut(length)

    def _cut(self, length: int) -> None:
        if not self._lib.llama_memory_seq_rm(self._memory, 0, length, -1):
            raise UsageError(f"llama.cpp cannot take tokens out of the cache of {self._model.path.name}: {reason()}.")
        self.processed = length

    def release(self) -> None:
        """A context has no state to put back."""

    def _decode(self, count: int) -> None:
        forget_messages()
        code = self._lib.llama_decode(self._context, self._batch.raw)
        if code != 0:
            raise UsageError(f"llama.cpp cannot read more of the text (code {code}): {reason()}.")
        self.processed += count

    def _logits(self, count: int) -> Tensor:
        """A view of llama.cpp's own rows. They are written over when it reads on."""
        pointer = self._lib.llama_get_logits(self._context)
        return torch.from_numpy(np.ctypeslib.as_array(pointer, (count, self._model.vocab_size)))


class _Batch:
    """Room for the tokens that llama.cpp reads at once."""

    def __init__(self, lib: Any, size: int) -> None:
        self.size, self.raw = size, lib.llama_batch_init(size, 0, 1)
        weakref.finalize(self, lib.llama_batch_free, self.raw)
        self._tokens, self._places, self._wanted = (
            np.ctypeslib.as_array(field, (size,)) for field in (self.raw.token, self.raw.pos, self.raw.logits)
        )
        for index in range(size):
            self.raw.n_seq_id[index] = 1
            self.raw.seq_id[index][0] = 0

    def fill(self, tokens: list[int], place: int, logits_from: int) -> None:
        """Tokens that begin at position `place`. The logits of those from index `logits_from` on are asked for."""
        count = len(tokens)
        self.raw.n_tokens = count
        self._tokens[:count] = tokens
        self._places[:count] = np.arange(place, place + count)
        self._wanted[:count] = np.arange(count) >= logits_from


def _load(lib: Any, path: Path, options: LlamaCppOptions) -> Any:
    check_gguf(path)
    params = lib.llama_model_default_params()
    if options.gpu_layers is not None:
        params.n_gpu_layers = options.gpu_layers
    forget_messages()
    model = lib.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise PairError(f"llama.cpp cannot load {path}: {reason()}. Get the file again, or take another.")
    if lib.llama_model_has_encoder(model) or not lib.llama_model_has_decoder(model):
        lib.llama_model_free(model)
        raise PairError(f"{path} is no causal language model: it has an encoder. kad composes decoders.")
    return model


def _free(lib: Any, model: Any, contexts: list[Any]) -> None:
    for context in contexts:
        lib.llama_free(context)
    lib.llama_model_free(model)

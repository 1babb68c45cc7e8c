"""llama-cpp-python: the low-level names that kad calls, checked, and llama.cpp's messages kept for the errors.

Its high-level class keeps the logits of the whole context; the low-level functions give those that are asked for.
"""

from __future__ import annotations

import ctypes
import re
from collections import deque
from functools import cache
from typing import Any

from kad import hosts
from kad.hosts import LLAMA_CPP, needs

NEEDS = needs(
    "llama_cpp",
    *("llama_model_default_params", "llama_model_load_from_file", "llama_model_free", "llama_model_get_vocab"),
    *("llama_model_size", "llama_model_n_params", "llama_model_n_ctx_train", "llama_model_n_swa", "llama_model_desc"),
    *("llama_model_is_recurrent", "llama_model_is_hybrid", "llama_model_has_encoder", "llama_model_has_decoder"),
    *("llama_model_chat_template", "llama_model_meta_val_str", "llama_context_default_params"),
    *("llama_init_from_model", "llama_free", "llama_get_causal_attn"),
    *("llama_n_ctx", "llama_get_memory", "llama_memory_clear", "llama_memory_seq_rm", "llama_batch_init"),
    *("llama_state_seq_get_size_ext", "llama_state_seq_get_data_ext", "llama_state_seq_set_data_ext"),
    *("llama_batch_free", "llama_decode", "llama_get_logits", "llama_log_set", "llama_log_callback"),
    *("llama_vocab_n_tokens", "llama_vocab_get_text", "llama_vocab_get_attr", "llama_vocab_is_eog", "llama_vocab_bos"),
    *("llama_vocab_eos", "llama_vocab_pad", "llama_tokenize", "llama_detokenize", "llama_token"),
    *("LLAMA_TOKEN_ATTR_UNUSED", "LLAMA_TOKEN_ATTR_CONTROL"),
)

# The numbers of ggml's types for a key-value cache.
CACHE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8}

_MESSAGES: deque[str] = deque(maxlen=50)
_WARNING = 3  # llama.cpp's levels: 1 debug, 2 info, 3 warning, 4 error, 5 the line before goes on


@cache
def library() -> Any:
    """The module `llama_cpp`, checked. llama.cpp writes nothing to the terminal from then on.

    Raises:
        MissingExtraError: it is not installed.
        HostError: it lacks a name that kad needs.
    """
    llama_cpp = hosts.library(LLAMA_CPP, "llama_cpp", NEEDS)
    llama_cpp.llama_log_set(_callback(llama_cpp), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


@cache
def _callback(llama_cpp: Any) -> Any:
    def keep(level: int, text: bytes | None, _: Any) -> None:
        if level >= _WARNING and text:
            _MESSAGES.append(text.decode(errors="replace").strip())

    return llama_cpp.llama_log_callback(keep)


def forget_messages() -> None:
    """Begin to listen to llama.cpp anew."""
    _MESSAGES.clear()


def reason() -> str:
    """Why llama.cpp failed, in its own words."""
    reasons = [
        match[1] for line in _MESSAGES if (match := re.search(r"(?:error loading \w+|gguf_init\w*): (.+)", line))
    ]
    return (reasons[:1] or [line for line in _MESSAGES if line] or ["llama.cpp gives no reason"])[-1]

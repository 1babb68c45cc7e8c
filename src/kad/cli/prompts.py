"""From what a person typed to token ids, and from token ids back to text as it arrives."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kad.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from kad.modeling import KadForCausalLM


def read_prompt(argument: str | None, file: Path | None) -> str:
    """The prompt: the argument, a file, or standard input ("-", or nothing given and something piped in).

    One newline at the end of a file or of standard input belongs to the file, not to the prompt.

    Raises:
        UsageError: no prompt, two of them, an empty one, or a file that cannot be read as UTF-8.
    """
    if argument is not None and file is not None:
        raise UsageError("Give the prompt as an argument or with --file, not both.")
    if argument is None and file is None and sys.stdin.isatty():
        raise UsageError('No prompt. Give one as an argument (kad generate "..."), with --file, or on standard input.')
    prompt = argument if argument not in (None, "-") else _read(file)
    if prompt is None or not prompt.strip():
        raise UsageError("The prompt is empty.")
    return prompt


def _read(file: Path | None) -> str:
    name = "standard input" if file is None else str(file)
    try:
        raw = sys.stdin.buffer.read() if file is None else file.read_bytes()
        return raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text (byte {error.start}). Convert it first.") from error
    except OSError as error:
        raise UsageError(f"Cannot read {name}: {error.strerror}.") from error


def encode_text(tokenizer: Any, prompt: str) -> Tensor:
    """The prompt as it stands, with the tokenizer's own start token if it has one: (1, positions).

    Raises:
        UsageError: it has no token.
    """
    ids: Tensor = tokenizer(prompt, return_tensors="pt").input_ids
    if ids.shape[-1] == 0:
        raise UsageError("The prompt is empty: the tokenizer makes no token of it.")
    return ids


def encode_chat(tokenizer: Any, messages: list[dict[str, str]], thinking: bool | None = None) -> Tensor:
    """The conversation in the aligned model's chat template, ready for the answer: (1, positions).

    Args:
        tokenizer: the aligned model's.
        messages: {"role": ..., "content": ...}, in order.
        thinking: passed to templates that know `enable_thinking` (Qwen3); None leaves it to the template.

    Raises:
        UsageError: no chat template, or one that refuses these messages.
    """
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "The aligned model's tokenizer has no chat template. Use --raw to give the prompt as it stands."
        )
    switches = {} if thinking is None else {"enable_thinking": thinking}
    try:
        encoded = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True, **switches
        )
    except TemplateError as error:
        raise UsageError(f"The aligned model's chat template refuses this conversation: {error}") from error
    ids: Tensor = encoded["input_ids"]
    return ids


def context_length(model: KadForCausalLM) -> int | None:
    """The most positions that all models of the composition were made for, or None where none of them says."""
    limits = (getattr(part.config.get_text_config(), "max_position_embeddings", None) for part in model.parts.values())
    return min((limit for limit in limits if limit), default=None)


def room(model: KadForCausalLM, prompt_tokens: int) -> int | None:
    """How many tokens fit after the prompt.

    Raises:
        UsageError: none.
    """
    context = context_length(model)
    if context is not None and prompt_tokens >= context:
        raise UsageError(
            f"The prompt has {prompt_tokens} tokens; the models' context holds {context}, answer included. Shorten it."
        )
    return None if context is None else context - prompt_tokens


def decode(tokenizer: Any, token_ids: list[int]) -> str:
    """The text of some tokens, special ones left out."""
    text: str = tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


class Detokenizer:
    """Text piece by piece as tokens arrive; a piece waits until its characters are complete.

    Only the tokens since the last complete piece are decoded anew, with the piece before them as context (some
    tokenizers write a space or not depending on what came before).
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._context = 0
        self._shown = 0

    def push(self, token: int) -> str:
        """The text that this token completes, possibly none."""
        self._tokens.append(token)
        before, now = self._decode(self._shown), self._decode(len(self._tokens))
        if now.endswith("\N{REPLACEMENT CHARACTER}") or len(now) <= len(before):
            return ""
        self._context, self._shown = self._shown, len(self._tokens)
        return now[len(before) :]

    def finish(self) -> str:
        """What is left at the end, incomplete characters included."""
        rest = self._decode(len(self._tokens))[len(self._decode(self._shown)) :]
        self._context = self._shown = len(self._tokens)
        return rest

    def _decode(self, end: int) -> str:
        return decode(self._tokenizer, self._tokens[self._context : end])

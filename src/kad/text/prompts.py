"""Messages to token ids, and token ids to text. This is the only place that applies a chat template."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from kad.errors import OptionError, UsageError, first_line
from kad.words import half_character

Message = Mapping[str, str]
Prompt = str | Sequence[Message] | Sequence[int]
"""A user's text, the messages of a conversation, or token ids."""

SECONDS = 10.0
"""How long a chat template may take."""


def messages(prompt: str | Sequence[Message], system: str | None = None) -> list[dict[str, str]]:
    """A prompt as the messages of a conversation, the system message first.

    Args:
        prompt: what the user says, or messages {"role": ..., "content": ...}, in order.
        system: a system message to put before them.
    """
    said = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(message) for message in prompt]
    return said if system is None else [{"role": "system", "content": system}, *said]


def render(
    tokenizer: Any, conversation: Sequence[Message], thinking: bool | None = None, *, drop_system: bool = False
) -> str:
    """The conversation as the text that the models read, ready for the answer.

    Args:
        tokenizer: the tokenizer of the aligned model.
        conversation: messages {"role": ..., "content": ...}, in order.
        thinking: passed to templates that know `enable_thinking` (Qwen3). None leaves it to the template.
        drop_system: leave the system message out if the template refuses it.

    Raises:
        UsageError: there is no chat template, or it refuses these messages.
    """
    from jinja2 import TemplateError

    from kad.pair.model_files import TROUBLE

    if not getattr(tokenizer, "chat_template", None):
        raise OptionError(
            "The aligned model's tokenizer has no chat template. Use `raw` to give the prompt as it stands."
        )
    switches = {} if thinking is None else {"enable_thinking": thinking}
    try:
        with _in_time(SECONDS):
            text: str = tokenizer.apply_chat_template(
                list(conversation), tokenize=False, add_generation_prompt=True, **switches
            )
    except (TemplateError, *TROUBLE, MemoryError) as error:
        without = [message for message in conversation if message["role"] != "system"]
        if drop_system and len(without) < len(conversation):
            return render(tokenizer, without, thinking)
        raise UsageError(f"The aligned model's chat template refuses this conversation: {first_line(error)}") from error
    return text


@contextmanager
def _in_time(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block if it takes longer. It may be the loop of somebody's template, in any thread."""
    thread, left, lock = ctypes.c_ulong(threading.get_ident()), False, threading.Lock()

    def end() -> None:
        with lock:
            if not left:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(TimeoutError))

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with lock:
            left = True


def encode(
    tokenizer: Any, prompt: Prompt, *, system: str | None = None, thinking: bool | None = None, raw: bool = False
) -> list[int]:
    """The token ids of a prompt.

    Args:
        tokenizer: the tokenizer of the aligned model.
        prompt: what the user says, messages, or token ids, which are returned unchanged.
        system: a system message before the prompt.
        thinking: see `render`.
        raw: use the text without the chat template, after the tokenizer's own start token.

    Raises:
        UsageError: the prompt is empty, or as `render`.
    """
    if not isinstance(prompt, str) and all(isinstance(item, int) for item in prompt):
        return _not_empty([item for item in prompt if isinstance(item, int)])
    said: Any = prompt
    if isinstance(prompt, str) and not (raw or prompt.strip()):
        raise UsageError("The prompt is empty.")
    if raw:
        if system is not None or thinking is not None or not isinstance(prompt, str):
            raise OptionError("`raw` uses no chat template: messages, `system` and `thinking` would do nothing.")
        return _not_empty(tokenized(tokenizer, prompt))
    # The template has already written all special tokens.
    text = render(tokenizer, messages(said, system), thinking)
    return _not_empty(tokenized(tokenizer, text, add_special_tokens=False))


def encode_plain(tokenizer: Any, text: str) -> list[int]:
    """The token ids of a text after the tokenizer's own start token. Names of special tokens in it stay text.

    Raises:
        UsageError: the text has no token.
    """
    return _not_empty(tokenized(tokenizer, text, split_special_tokens=True))


def text_ids(tokenizer: Any, text: str | Sequence[int], prompt: Sequence[int] = ()) -> list[int]:
    """The token ids of a text that follows a prompt. Token ids are returned unchanged.

    Both are encoded together, and the prompt's tokens cut off: a tokenizer may write a text of its own otherwise. Where
    a token would reach across the seam, the text is encoded behind something that no token joins with it.
    """

    def encoded(text: str) -> list[int]:
        return tokenized(tokenizer, text, add_special_tokens=False)

    if not isinstance(text, str):
        return list(text)
    before = decode(tokenizer, prompt, special=True)
    for start, ids in ((before, list(prompt)), *((seam, encoded(seam)) for seam in _SEAMS)):
        both = encoded(start + text)
        found = both[len(ids) :]
        if prompt and both[: len(ids)] == ids and decode(tokenizer, [*prompt, *found], special=True) == before + text:
            return found
    return encoded(text)


def tokenized(tokenizer: Any, text: str, **options: bool) -> list[int]:
    """The token ids of a text.

    Args:
        tokenizer: the tokenizer.
        text: the text.
        options: the tokenizer's own.

    Raises:
        UsageError: the tokenizer does not read it.
    """
    if (half := half_character(text)) is not None:
        raise UsageError(f"The text has {half}, which no tokenizer reads. Take it out.")
    try:
        return list(tokenizer(text, **options).input_ids)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Rust; it is no Exception, and no module exports it
            raise
        raise UsageError(f"The tokenizer gives up on this text: {first_line(error)}.") from None


_SEAMS = ("\n", "!", "0")


def _not_empty(ids: Sequence[int]) -> list[int]:
    if not ids:
        raise UsageError("The prompt is empty: the tokenizer makes no token of it.")
    return list(ids)


def start_token(tokenizer: Any) -> int:
    """What stands before the first token of a text that follows nothing: the start token, else the end token.

    Raises:
        UsageError: there is neither.
    """
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if start is None:
        raise UsageError("The tokenizer has no start token and no end token, so the first token has nothing before it.")
    return int(start)


def decode(tokenizer: Any, token_ids: Sequence[int], *, special: bool = False) -> str:
    """The text of some tokens. Special tokens are left out unless `special` is True."""
    text: str = tokenizer.decode(list(token_ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False)
    return text


class Detokenizer:
    """The text of tokens as they arrive. A piece waits until its characters are complete.

    Each time it decodes the tokens since the last complete piece, together with the piece before them: whether a
    tokenizer writes a space may depend on what came before.

    Args:
        tokenizer: the tokenizer of the tokens.
        before: the tokens before the first one.
        special: whether special tokens are part of the text.
    """

    def __init__(self, tokenizer: Any, before: Sequence[int] = (), *, special: bool = False) -> None:
        self._tokenizer, self._special = tokenizer, special
        self._tokens = list(before[-_CONTEXT:])
        self._context, self._shown = 0, len(self._tokens)

    def push(self, token: int) -> str:
        """The text that this token completes. It may be empty."""
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
        return decode(self._tokenizer, self._tokens[self._context : end], special=self._special)


_CONTEXT = 4  # tokens before the first one that decide whether it begins with a space


def pieces(tokenizer: Any, token_ids: Sequence[int], before: Sequence[int] = (), *, special: bool = False) -> list[str]:
    """What each token adds to the text. Joined, they are the text. A token that completes no character adds ""."""
    text = Detokenizer(tokenizer, before, special=special)
    parts = [text.push(token) for token in token_ids]
    if parts:
        parts[-1] += text.finish()
    return parts

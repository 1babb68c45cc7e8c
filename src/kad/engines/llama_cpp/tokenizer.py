"""The tokenizer of a GGUF file, by llama.cpp, with the part of Transformers' interface that kad uses."""

from __future__ import annotations

import ctypes
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AddedToken, BatchEncoding, __version__

from kad.disk import own_cache, write_atomically
from kad.engines.transformers.host import render_jinja_template
from kad.errors import UsageError
from kad.pair.model_files import load_tokenizer
from kad.pair.sources import Source

_LOG = logging.getLogger(__name__)
# The tokens of a file stand in its first bytes, before the weights.
_HEADER_BYTES = 64 * 2**20


class GgufTokenizer:
    """A vocabulary of llama.cpp as a tokenizer.

    Args:
        lib: the module of llama-cpp-python.
        vocab: the vocabulary, as llama.cpp points to it.
        chat_template: the file's chat template, or None.
        path: the file.
        owner: what must live as long as the vocabulary is used.
    """

    padding_side = "left"

    def __init__(self, lib: Any, vocab: Any, chat_template: str | None, path: Path, owner: Any) -> None:
        self._lib, self._vocab, self._path, self._owner = lib, vocab, path, owner
        self.chat_template = chat_template
        self._size = int(lib.llama_vocab_n_tokens(vocab))
        # The tokens that end a text.
        self.end_token_ids = [index for index in range(self._size) if lib.llama_vocab_is_eog(vocab, index)]
        self.bos_token_id, self.eos_token_id, self.pad_token_id = (
            index if (index := int(ask(vocab))) >= 0 else None
            for ask in (lib.llama_vocab_bos, lib.llama_vocab_eos, lib.llama_vocab_pad)
        )

    def __len__(self) -> int:
        return self._size

    def __call__(self, text: str, add_special_tokens: bool = True, split_special_tokens: bool = False) -> BatchEncoding:
        """The token ids of a text, as `input_ids`. Special tokens in it are read as such, or split like other text."""
        raw = text.encode()
        room = len(raw) + 8
        while True:
            tokens = (self._lib.llama_token * room)()
            count = self._lib.llama_tokenize(
                self._vocab, raw, len(raw), tokens, room, add_special_tokens, not split_special_tokens
            )
            if count >= 0:
                return BatchEncoding({"input_ids": list(tokens[:count])})
            room = -count

    def decode(
        self, ids: int | Sequence[int], skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = False
    ) -> str:
        """The text of some tokens. `clean_up_tokenization_spaces` must be False.

        Raises:
            UsageError: a token that is not in the vocabulary, at which llama.cpp would end the process.
        """
        sequence = [ids] if isinstance(ids, int) else list(ids)
        wrong = next((token for token in sequence if not 0 <= token < self._size), None)
        if wrong is not None:
            raise UsageError(f"There is no token {wrong} in {self._path.name}: it has {self._size} tokens.")
        tokens = (self._lib.llama_token * len(sequence))(*sequence)
        room = 16 * len(sequence) + 64
        while True:
            text = ctypes.create_string_buffer(room)
            count = self._lib.llama_detokenize(
                self._vocab, tokens, len(sequence), text, room, False, not skip_special_tokens
            )
            if count >= 0:
                return text.raw[:count].decode(errors="replace")
            room = -count

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        *,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        **switches: Any,
    ) -> Any:
        """The conversation as the file's template writes it: a text, or token ids."""
        texts, _ = render_jinja_template(
            conversations=[list(conversation)],
            chat_template=self.chat_template,
            add_generation_prompt=add_generation_prompt,
            **{"bos_token": self._text(self.bos_token_id), "eos_token": self._text(self.eos_token_id), **switches},
        )
        return self(texts[0], add_special_tokens=False).input_ids if tokenize else texts[0]

    def get_vocab(self) -> dict[str, int]:
        """Token to id. Rows that stand for no token are left out."""
        unused, attribute = self._lib.LLAMA_TOKEN_ATTR_UNUSED, self._lib.llama_vocab_get_attr
        return {self._text(i): i for i in range(self._size) if not attribute(self._vocab, i) & unused}

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The special tokens, by id."""
        control = self._lib.LLAMA_TOKEN_ATTR_CONTROL
        special = (i for i in range(self._size) if self._lib.llama_vocab_get_attr(self._vocab, i) & control)
        return {index: AddedToken(self._text(index), special=True) for index in special}

    @property
    def eos_token(self) -> str:
        """The text of the token that ends a text."""
        return self._text(self.eos_token_id)

    @cached_property
    def backend_tokenizer(self) -> Any:
        """The same tokenizer as Transformers converts it, for what needs the rules behind the tokens.

        A large one takes a minute to convert, so it is kept in kad's cache.

        Raises:
            PairError: Transformers cannot convert it.
        """
        cached = _converted(self._path)
        if cached is not None and cached.is_file():
            try:
                return Tokenizer.from_file(str(cached))
            except Exception as error:  # noqa: BLE001  what tokenizers raises has no class of its own
                _LOG.debug("%s is damaged, and made anew: %s", cached, error)
        backend = load_tokenizer(Source(str(self._path.parent), None, {"gguf_file": self._path.name})).backend_tokenizer
        if cached is not None:
            with suppress(OSError):  # a full disk; this process has what it needs
                write_atomically(cached, backend.to_str())
        return backend

    def _text(self, index: int | None) -> str:
        ask: Callable[..., bytes] = self._lib.llama_vocab_get_text
        return "" if index is None else ask(self._vocab, index).decode(errors="replace")


def _converted(path: Path) -> Path | None:
    """Where the converted tokenizer of a file is kept; None where there is no place to keep it."""
    with path.open("rb") as file:
        header = hashlib.sha256(file.read(_HEADER_BYTES)).hexdigest()
    try:
        folder = own_cache() / "tokenizers"
        folder.mkdir(exist_ok=True)
    except OSError:
        return None
    return folder / f"{header[:32]}-{__version__}.json"

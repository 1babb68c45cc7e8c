"""A tokenizer on bytes: which bytes an id stands for, and the ids of a text."""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from kad.errors import VocabularyError

# Where no token reaches across the space between two words, a text is encoded word by word, so that a longer text costs
# no more than its last word.
_WORDS = re.compile(rb"(?<=[A-Za-z])(?= [A-Za-z])")
_ACROSS = re.compile(rb"[A-Za-z] ")
# Continuations that change a piece of text that some split rule has looked ahead for.
_PROBES = (b"e", b"l", b"s", b" ", b"\n", b"1", b".", "\N{CJK UNIFIED IDEOGRAPH-4E2D}".encode())
# What a tokenizer must give back: words, spaces, digits, line ends, and characters of two to four bytes.
_SAMPLES = (
    *("The cat sat.", " two  spaces", "1234 + 56", "line\n\nline", "na\u00efve", "\u65e5\u672c", "\U0001f680 ok"),
    "<|im_end|>",
)


class TokenBytes:
    """A byte-exact view of a tokenizer: no special tokens, no space added before a text.

    Attributes:
        pieces: the bytes of each id; None for special tokens and ids without a token.
    """

    def __init__(
        self, tokenizer: Any, pieces: Sequence[bytes | None], *, splits: bool = True, merges_words: bool = True
    ) -> None:
        """A view; `of` makes it from a Transformers tokenizer.

        Args:
            tokenizer: a `tokenizers.Tokenizer` that encodes special tokens as ordinary text.
            pieces: the bytes of each id.
            splits: whether its pre-tokenizer splits a text before anything is merged.
            merges_words: whether tokens may reach across a space.
        """
        self.pieces = list(pieces)
        self._tokenizer = tokenizer
        self._splits, self._merges_words = splits, merges_words
        self._whole = _ACROSS.search(b"\0".join(piece for piece in self.pieces if piece)) is not None
        # Of this object alone: the tokenizer is not part of the key.
        self._chunk = lru_cache(maxsize=4096)(self._encode_chunk)
        self._unprobed = lru_cache(maxsize=4096)(self._before_last_word)
        self._probed = lru_cache(maxsize=4096)(self._probe)

    @classmethod
    def of(cls, tokenizer: Any, size: int) -> TokenBytes:
        """The bytes of a Transformers tokenizer.

        Args:
            tokenizer: a fast tokenizer: byte-level BPE (Qwen, Llama 3, SmolLM), or BPE with byte fallback in the
                style of SentencePiece (Gemma, Llama 2).
            size: the number of rows of the model's output.

        Raises:
            VocabularyError: a tokenizer of another kind, or one that does not give the bytes of a text back.
        """
        from tokenizers import Tokenizer

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise VocabularyError(
                f"{type(tokenizer).__name__} has no fast tokenizer (tokenizer.json), so its bytes cannot be read. "
                "Convert it with AutoTokenizer(..., use_fast=True)."
            )
        plain = json.loads(backend.to_str())
        kind = _kind(plain)
        own = Tokenizer.from_str(json.dumps(_without_added_space(plain)))
        own.no_truncation()
        own.no_padding()
        own.encode_special_tokens = True
        pieces: list[bytes | None] = [None] * size
        special = {token["id"] for token in plain["added_tokens"] if token["special"]}
        added = {token["id"]: token["content"] for token in plain["added_tokens"]}
        for token, index in own.get_vocab(with_added_tokens=True).items():
            if index < size and index not in special:
                pieces[index] = token.encode() if index in added and kind == "bytes" else _bytes_of(token, kind)
        view = cls(own, pieces, splits=_splits(plain), merges_words=kind == "bytes")
        view._check()
        return view

    def encode(self, text: bytes) -> tuple[int, ...]:
        """The ids of a text, which must be whole UTF-8 characters: the canonical ids."""
        return self._encode_chunks(self._chunks(text))

    def bytes_of(self, ids: Sequence[int]) -> bytes:
        """The bytes of some ids, special tokens left out."""
        return b"".join(self.pieces[index] or b"" for index in ids)

    def is_stepwise(self, ids: tuple[int, ...]) -> bool:
        """Whether a model that writes canonical ids only can arrive at `ids`: each of its prefixes is canonical.

        A split rule that looks ahead (GPT-2's for white space) makes some canonical sequences unreachable. Only the
        ids of the last chunk are looked at.
        """
        last = self._chunk(self._chunks(self.bytes_of(ids))[-1])
        return ids[len(ids) - len(last) :] == last and all(
            self._is_canonical(last[:count]) for count in range(1, len(last))
        )

    def settled(self, text: bytes, known: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The first ids of `text` that stay the same however the text goes on.

        What begins `known` is not probed: an id must be new to be worth it.

        They end before the last word of the tokenizer's own splitting, and no probe changes them: some split rules
        look ahead ("'r" and "e" make one piece "'re"). A tokenizer that splits nothing is split at spaces if its kind
        merges nothing across them (SentencePiece style), else nothing is settled before the text ends.
        """
        chunks = self._chunks(text[: whole_characters(text)])
        before = self._encode_chunks(chunks[:-1])
        settled = before + self._unprobed(chunks[-1])
        return settled if settled == known[: len(settled)] else before + self._probed(chunks[-1])

    def extensions(self, prefix: bytes) -> Tensor:
        """The ids (n,) whose bytes begin with `prefix` and go on."""
        low, high = self._extending(prefix)
        return self._by_bytes[low:high]

    def is_extended(self, prefix: bytes) -> bool:
        """Whether `prefix` has `extensions`."""
        low, high = self._extending(prefix)
        return low < high

    def extends(self, token: int, prefix: bytes) -> bool:
        """Whether the bytes of `token` begin with `prefix` and go on."""
        piece = self.pieces[token]
        return piece is not None and len(piece) > len(prefix) and piece.startswith(prefix)

    @cached_property
    def longest(self) -> int:
        """The number of bytes of the longest token."""
        return max(len(piece) for piece in self.pieces if piece)

    @cached_property
    def _by_bytes(self) -> Tensor:
        return torch.tensor(sorted((i for i, piece in enumerate(self.pieces) if piece), key=self._piece))

    @cached_property
    def _keys(self) -> list[bytes]:
        return [self._piece(index) for index in self._by_bytes.tolist()]

    def _piece(self, token: int) -> bytes:
        return self.pieces[token] or b""

    def _extending(self, prefix: bytes) -> tuple[int, int]:
        """Where the keys that begin with `prefix` and go on begin and end."""
        low = bisect_right(self._keys, prefix)
        return low, bisect_left(self._keys, prefix + b"\xff" * self.longest, low)

    def _chunks(self, text: bytes) -> list[bytes]:
        """Parts of a text that are encoded one by one; at least one."""
        return [text] if self._whole else _WORDS.split(text)

    def _before_last_word(self, text: bytes) -> tuple[int, ...]:
        """The ids of `text` that end before its last word."""
        ids, end, last = self._chunk(text), 0, self._last_word(text)
        for count, index in enumerate(ids):
            end += len(self.pieces[index] or b"")
            if end > last:
                return ids[:count]
        return ids

    def _probe(self, text: bytes) -> tuple[int, ...]:
        """Those of `_before_last_word` that no probe changes."""
        ids = self._unprobed(text)
        for probe in _PROBES if ids else ():
            longer = self.encode(text + probe)
            while longer[: len(ids)] != ids:
                ids = ids[:-1]
        return ids

    def _last_word(self, text: bytes) -> int:
        """Where the last piece begins that the tokenizer splits off before it merges."""
        splitter = self._tokenizer.pre_tokenizer
        if splitter is None or not self._splits:
            return max(text.rfind(b" "), 0) if not self._merges_words else 0
        pieces = splitter.pre_tokenize_str(text.decode())
        return len(text.decode()[: pieces[-1][1][0]].encode()) if pieces else 0

    def _is_canonical(self, ids: tuple[int, ...]) -> bool:
        text = self.bytes_of(ids)
        return whole_characters(text) < len(text) or self._chunk(text) == ids

    def _encode_chunks(self, chunks: Sequence[bytes]) -> tuple[int, ...]:
        return tuple(chain.from_iterable(map(self._chunk, chunks)))

    def _encode_chunk(self, text: bytes) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text.decode(), add_special_tokens=False).ids)

    def _check(self) -> None:
        for sample in _SAMPLES:
            text = sample.encode()
            ids = self.encode(text)
            if self.bytes_of(ids) == text:
                continue
            place, wrong = 0, ids[0] if ids else None
            for wrong in ids:
                piece = self.pieces[wrong] or b""
                if not piece or not text.startswith(piece, place):
                    break
                place += len(piece)
            token = "nothing" if wrong is None else f"{self._tokenizer.id_to_token(wrong)!r} (id {wrong})"
            raise VocabularyError(
                f"This tokenizer does not give the bytes of a text back: {sample!r} becomes "
                f"{self.bytes_of(ids)!r}; the first token that differs is {token}. "
                "Two models can be composed across tokenizers only if both give a text's bytes back."
            )


@lru_cache(maxsize=8)
def token_bytes(tokenizer: Any) -> TokenBytes:
    """`TokenBytes.of` all tokens of a tokenizer, made once."""
    return TokenBytes.of(tokenizer, len(tokenizer))


def first_stop(text: bytes, stops: Sequence[bytes], after: int) -> int | None:
    """Where the stop string begins that is the first to be complete past the first `after` bytes. None: there is none.

    A reader stops there, whatever longer one has begun before it.
    """
    found = [(place + len(s), place) for s in stops if (place := text.find(s, max(after - len(s) + 1, 0))) >= 0]
    return min(found)[1] if found else None


def whole_characters(text: bytes) -> int:
    """How many bytes at the beginning of `text` are whole UTF-8 characters."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(text)


def _kind(plain: dict[str, Any]) -> str:
    """Which of the two ways of writing bytes: the *decoder* tells, for a vocabulary can hold either's letters."""
    decoders = plain["decoder"] or {}
    kinds = {part["type"] for part in decoders.get("decoders", [decoders]) if part}
    if plain["model"]["type"] == "BPE" and "ByteLevel" in kinds:
        return "bytes"
    if plain["model"]["type"] == "BPE" and kinds & {"ByteFallback", "Metaspace", "Replace"}:
        return "pieces"
    raise VocabularyError(
        f"A tokenizer of type {plain['model']['type']} with the decoder {sorted(kinds)} cannot be read as bytes. "
        "Byte-level BPE and BPE with byte fallback (SentencePiece style) can."
    )


def _splits(plain: dict[str, Any]) -> bool:
    """Whether the pre-tokenizer cuts the text: a regular expression, digits, white space."""
    splitter = plain["pre_tokenizer"] or {}
    steps = splitter.get("pretokenizers", [splitter] if splitter else [])
    # Gemma's splits at spaces, of which its normalizer leaves none.
    cuts = [s for s in steps if s["type"] != "ByteLevel" or s.get("use_regex", True)]
    replaced = "Replace" in json.dumps(plain["normalizer"] or {}) or "Metaspace" in json.dumps(steps)
    return bool(cuts) and not replaced


def _without_added_space(plain: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer without the space that some put before every text, and without markers around a text."""
    plain["post_processor"] = None
    normalizer = plain["normalizer"] or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    steps = [step for step in steps if step["type"] != "Prepend"]
    plain["normalizer"] = {"type": "Sequence", "normalizers": steps} if steps else None
    splitter = plain["pre_tokenizer"] or {}
    for step in splitter.get("pretokenizers", [splitter]):
        if "prepend_scheme" in step:
            step["prepend_scheme"] = "never"
        if "add_prefix_space" in step:
            step["add_prefix_space"] = False
    return plain


def _bytes_of(token: str, kind: str) -> bytes:
    if kind == "bytes":
        alphabet = byte_alphabet()
        return bytes(alphabet[letter] for letter in token) if all(c in alphabet for c in token) else token.encode()
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()


@lru_cache(maxsize=1)
def byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others for the letters from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}

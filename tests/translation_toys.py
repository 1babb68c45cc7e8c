"""Toy tokenizers, a table model, and phat by brute force: the truth for tests of the translation."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from kad.tokens.token_bytes import TokenBytes, byte_alphabet, whole_characters

_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
SPLITS = {
    "none": _BYTES,
    "words": pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "merged_with_next"), _BYTES]),
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
}


def random_tokenizer(seed: int, alphabet: bytes, merges: int, split: str) -> TokenBytes:
    """A byte-level BPE with random merges over a few bytes. The last two ids are special tokens, which end a text."""
    draw = random.Random(seed)
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    vocab = [letters[byte] for byte in sorted(set(alphabet))]
    made: list[tuple[str, str]] = []
    while len(made) < merges:
        pair = (draw.choice(vocab), draw.choice(vocab))
        piece = bytes(byte_alphabet()[letter] for letter in "".join(pair))
        # No token begins inside a character and goes on past it; the reading leaves such tokens of p out.
        inside = piece[0] & 0b1100_0000 == 0b1000_0000 and len(piece) > 1
        # Nor does one reach across a space that its tokenizer splits at.
        across = split != "none" and re.search(rb"[a-z] ", piece)
        if pair in made or len(piece) > 4 or inside or across:
            continue
        made.append(pair)
        if "".join(pair) not in vocab:
            vocab.append("".join(pair))
    tokenizer = Tokenizer(models.BPE({name: index for index, name in enumerate(vocab)}, made))
    tokenizer.pre_tokenizer = SPLITS[split]
    pieces = [bytes(byte_alphabet()[letter] for letter in token) for token in vocab]
    return TokenBytes(tokenizer, [*pieces, None, None], splits=split != "none")


@dataclass
class TableModel:
    """p(u | h) from a table drawn at random for each of the last two tokens; a text has at most `longest` bytes."""

    tokens: TokenBytes
    seed: int
    longest: int
    sharpness: float = 1.5
    processed: int = 0

    def __post_init__(self) -> None:
        self._ids: list[int] = []

    def logits(self, ids: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(hash((self.seed, ids[-2:])) % 2**31)
        row = self.sharpness * torch.randn(len(self.tokens.pieces), generator=generator, dtype=torch.float64)
        room = self.longest - len(self.tokens.bytes_of(ids))
        too_long = [piece is not None and len(piece) > room for piece in self.tokens.pieces]
        return row.masked_fill(torch.tensor(too_long), -torch.inf)

    def advance(self, ids: Tensor, keep: int) -> Tensor:
        rows = []
        for token in ids.tolist():
            self._ids.append(token)
            rows.append(self.logits(tuple(self._ids)))
        self.processed = len(self._ids)
        return torch.stack(rows[-keep:])

    def rollback(self, length: int) -> None:
        del self._ids[length:]
        self.processed = len(self._ids)


def all_texts(model: TableModel) -> dict[bytes, float]:
    """Every text that p can write with canonical tokens, each step renormalized, and its probability."""
    tokens, found = model.tokens, {}

    def canonical(ids: tuple[int, ...]) -> bool:
        text = tokens.bytes_of(ids)
        return whole_characters(text) < len(text) or tokens.encode(text) == ids

    def walk(ids: tuple[int, ...], mass: float) -> None:
        p = model.logits(ids).softmax(dim=-1).tolist()
        allowed = [u for u, piece in enumerate(tokens.pieces) if p[u] > 0 and (piece is None or canonical((*ids, u)))]
        whole = sum(p[u] for u in allowed)
        for u in allowed:
            if tokens.pieces[u] is None:
                text = tokens.bytes_of(ids)
                found[text] = found.get(text, 0.0) + mass * p[u] / whole
            else:
                walk((*ids, u), mass * p[u] / whole)

    walk((), 1.0)
    return found


def brute_force(
    texts: dict[bytes, float],
    aligned: TokenBytes,
    answer: tuple[int, ...],
    tail: tuple[int, ...],
    opened: bytes = b"",
    stops: tuple[bytes, ...] = (),
    end: int | None = None,
) -> Tensor | None:
    """phat(. | answer) by its definition, where `tail` is the canonical end of the answer.

    p's text ends before the first stop string that ends past the answer. `end` is q*'s end token: that p's text goes no
    further. None where p cannot have written the answer.
    """
    before = opened + aligned.bytes_of(answer[: len(answer) - len(tail)])
    written = opened + aligned.bytes_of(answer)
    numerators = torch.zeros(len(aligned.pieces), dtype=torch.float64)
    whole = 0.0
    for text, mass in texts.items():
        if not text.startswith(written):
            continue
        found = [
            (place + len(s), place) for s in stops if (place := text.find(s, max(len(written) - len(s) + 1, 0))) >= 0
        ]
        cut = text[: min(found)[1]] if found else text
        ids = aligned.encode(_whole(cut[len(before) :]))
        over = len(cut) < len(written) or ids == tail
        if over or ids[: len(tail)] == tail:
            whole += mass
            following = end if over else ids[len(tail)]
            if following is not None:
                numerators[following] += mass
    return numerators / whole if whole > 0 else None


def _whole(text: bytes) -> bytes:
    return text[: whole_characters(text)]

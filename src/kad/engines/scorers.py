"""Scorers around the base model's scorer: its own prompt, tokens that it never keeps, a tokenizer of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from kad.method.distribution import EXCLUDED, Rows, RowsWithRest, lowered
from kad.method.scorer import Scorer
from kad.tokens import Nodes, Reading, TokenBytes, Translation
from kad.tokens.never_kept import NeverKept
from kad.tokens.token_bytes import whole_characters


class _Around:
    """What a scorer around another one leaves to it."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    @property
    def processed(self) -> int:
        return self.scorer.processed

    @property
    def reversible(self) -> bool:
        return self.scorer.reversible

    def rollback(self, length: int) -> None:
        self.scorer.rollback(length)

    def release(self) -> None:
        self.scorer.release()


class OwnPrompt(_Around):
    """Scorer of a base model with its own prompt, for callers that count in the tokens of another prompt.

    Args:
        scorer: the model's scorer. It may have read a prefix of its own prompt.
        prompt: the tokens of its own prompt, at least one.
        shared: the number of tokens of the callers' prompt, at least one.
    """

    def __init__(self, scorer: Scorer, prompt: Sequence[int], shared: int) -> None:
        super().__init__(scorer)
        self._prompt, self._shared = list(prompt), shared

    @property
    def processed(self) -> int:
        """How many of the callers' tokens count as read. The prompt counts as a whole."""
        read = self.scorer.processed
        whole = len(self._prompt)
        return read - whole + self._shared if read >= whole else min(read, self._shared - 1)

    def advance(self, ids: Tensor, keep: int) -> Rows:
        """In the place of what is left of the callers' prompt it reads its own."""
        unread = self._prompt[self.scorer.processed :]
        new = ids[max(self._shared - self.processed, 0) :] if unread else ids
        own = torch.cat((torch.tensor(unread, dtype=ids.dtype, device=ids.device), new))
        return self.scorer.advance(own, keep)

    def rollback(self, length: int) -> None:
        answer = max(length - self._shared, 0)
        self.scorer.rollback(len(self._prompt) + answer - (length < self._shared))

    def has_read(self, ids: Sequence[int]) -> list[int]:
        """The tokens that the model has read, given those of the callers' prompt and of the answer."""
        return [*self._prompt, *ids[self._shared :]][: self.scorer.processed]


class Restricted(_Around):
    """Scorer of a base model without the tokens that p never keeps as they are.

    Args:
        scorer: the base model's scorer.
        never_kept: the tokens, and where their mass goes.
        shared: the number of tokens of the prompt, as `scorer` counts them.
        deferral_temperature: see `kad.method.distribution.move_to_rest`.
    """

    def __init__(self, scorer: Scorer, never_kept: NeverKept, shared: int, deferral_temperature: float = 1.0) -> None:
        super().__init__(scorer)
        self._never_kept, self._shared, self._temperature = never_kept, shared, deferral_temperature
        self._answer: list[int] = []

    def advance(self, ids: Tensor, keep: int) -> RowsWithRest:
        new = ids[max(self._shared - self.processed, 0) :]
        rows = self.scorer.advance(ids, keep)
        if self._never_kept.ends is None:  # then the answer need not be read from the device
            return self._never_kept.move(rows, (), self._temperature)
        self._answer += new.tolist()
        ends = range(len(self._answer) - keep + 1, len(self._answer) + 1)
        return self._never_kept.move(rows, [self._answer[:end] for end in ends], self._temperature)

    def rollback(self, length: int) -> None:
        self.scorer.rollback(length)
        del self._answer[max(self.processed - self._shared, 0) :]


class Endless(_Around):
    """Scorer of an aligned model that may not end an answer.

    Args:
        scorer: its scorer.
        ends: the tokens by which it would.
        deferral_temperature: that of the composition.
    """

    def __init__(self, scorer: Scorer, ends: Sequence[int], deferral_temperature: float = 1.0) -> None:
        super().__init__(scorer)
        self._ends, self._temperature = list(ends), deferral_temperature

    def advance(self, ids: Tensor, keep: int) -> Tensor:
        return lowered(cast("Tensor", self.scorer.advance(ids, keep)), self._ends, self._temperature)


# Tokens of the base model below this probability are not looked at one by one. Part of the definition of the rows.
LEAST = 0.002
# A way to go on that has less than this share, and is not settled, is not followed. Likewise.
LEAST_BRANCH = 0.4


@dataclass(frozen=True)
class Languages:
    """How the text of one model becomes the tokens of another."""

    base: TokenBytes  # the base model's tokenizer
    aligned: TokenBytes  # the aligned model's
    vocab_size: int  # the number of the aligned model's output rows
    opened: bytes = b""  # bytes that the base model writes before the answer begins: the space after "Answer:"
    stops: tuple[bytes, ...] = ()  # texts by which the base model's prompt ends an answer
    end: int | None = None  # the aligned model's end token, if the base model may end an answer


class Translated(_Around):
    """A scorer for callers that count in the aligned model's tokens: its prompt, and the answer.

    A row has the logarithms of p's probabilities in the aligned model's tokens; its rest is what belongs to none of
    them. It depends on the answer so far, and not on what the model read before.

    Args:
        scorer: the base model's scorer. It may have read a prefix of its own prompt.
        prompt: the base model's prompt in its own tokens, at least one.
        shared: the number of tokens of the callers' prompt, at least one.
        languages: the two tokenizers.
        deferral_temperature: the base model's logits are divided by it. Rows are multiplied by it, because the
            composition will divide them.
    """

    def __init__(
        self,
        scorer: Scorer,
        prompt: Sequence[int],
        shared: int,
        languages: Languages,
        deferral_temperature: float = 1.0,
    ) -> None:
        super().__init__(scorer)
        self._prompt, self._shared = list(prompt), shared
        self._languages, self._temperature = languages, deferral_temperature
        self._answer: list[int] = []
        self._read = 0
        self._translation: tuple[Nodes, Translation] | None = None

    @property
    def processed(self) -> int:
        """How many of the callers' tokens count as read."""
        return self._read

    @property
    def forwards(self) -> int:
        """How many forward passes the answer took until now, the prompt's not counted."""
        return 0 if self._translation is None else self._translation[0].forwards

    def advance(self, ids: Tensor, keep: int) -> RowsWithRest:
        self._answer += ids[max(self._shared - self._read, 0) :].tolist()
        self._read += len(ids)
        ends = range(len(self._answer) - keep + 1, len(self._answer) + 1)
        nodes, translation = self._translation or self._begin(ids.device)
        if keep > 1:
            # One forward pass over the whole text, instead of one for each row.
            text = self._languages.opened + self._languages.aligned.bytes_of(self._answer)
            nodes.at(self._languages.base.encode(text[: whole_characters(text)]))
        rows = torch.stack([self._row(translation.read(self._answer[:end])) for end in ends]).to(ids.device)
        return RowsWithRest(rows[:, :-1].contiguous(), rows[:, -1:])

    def rollback(self, length: int) -> None:
        """The model itself goes back when it reads other tokens."""
        self._read = min(self._read, length)
        del self._answer[max(length - self._shared, 0) :]

    def has_read(self, ids: Sequence[int]) -> list[int]:
        """The tokens that the model has read."""
        path = () if self._translation is None else self._translation[0].path
        return [*self._prompt, *path][: self.scorer.processed]

    def _begin(self, device: torch.device) -> tuple[Nodes, Translation]:
        unread = torch.tensor(self._prompt[self.scorer.processed :], device=device)
        last = cast("Tensor", self.scorer.advance(unread, 1))[0]
        ours = self._languages
        nodes = Nodes(self.scorer, self._prompt, last, ours.base, LEAST, self._temperature)
        self._translation = (
            nodes,
            Translation(
                nodes, ours.aligned, opened=ours.opened, stops=ours.stops, end=ours.end, least_branch=LEAST_BRANCH
            ),
        )
        return self._translation

    def _row(self, reading: Reading) -> Tensor:
        """(vocab + 1,), float32. The last entry is the rest."""
        size = self._languages.vocab_size
        row = torch.full((size + 1,), self._temperature * EXCLUDED)
        positive = {token: p for token, p in (*reading.p.items(), (size, reading.rest)) if p > 0.0}
        row[list(positive)] = torch.tensor([self._temperature * math.log(p) for p in positive.values()])
        return row

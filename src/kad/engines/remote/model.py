"""A base model on a server; see `kad.engines.protocols.Model`. Its rows are lists of the most probable tokens.

A scorer keeps the tokens of the text, and the server keeps its cache: with one request for each window it is asked for
the next token after each prefix. What a server needs not say stays there: a vocabulary never crosses the network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from transformers import GenerationConfig

from kad.engines.protocols import Facts, OneAtATime
from kad.engines.remote.client import Client, Refused
from kad.engines.remote.dialects import Dialect, List, check_tokens, find, largest
from kad.errors import PairError, ServerError, UsageError
from kad.method.distribution import EXCLUDED, ListedRows
from kad.method.scorer import Scorer
from kad.pair.model_files import load_generation_config, load_tokenizer, rows_of
from kad.pair.sources import BASE_URL, Source
from kad.words import counted

LISTED = 4
"""The tokens that are asked for first. `dual` with a threshold of 0.25 or more never needs another."""
_AT_ONCE = 32  # prompts in one request
# What a sum of probabilities, each of them a float32 in decimal digits, can be wrong by.
_ROUNDING = 2e-6
# The least that the tokens outside of a list have together: as little as a sum can say. It is never zero, so that q*
# decides where a mask leaves no token that p keeps.
_LEAST_REST = 1e-8


class RemoteModel(OneAtATime):
    """The base model of a pair, on a server.

    Args:
        source: the address of the server, and where the model's tokenizer is.
        client: asks the server. None: a new one.

    Raises:
        PairError: a pair names a server that the user has not named; or it has no such model.
        ServerError: it cannot be reached.
        VocabularyError: it has another tokenizer.
    """

    def __init__(self, source: Source, client: Client | None = None) -> None:
        url = str(source.url)
        if not source.allowed:
            raise PairError(
                f"The pair names the server {url}, which would read your prompts. If you want that, set {BASE_URL} to "
                "this address."
            )
        self.source, self.client = source, client or Client(url)
        self.tokenizer = load_tokenizer(source)
        self.vocab_size = rows_of(source)
        self.dialect: Dialect = find(self.client, source.served)
        start = self.tokenizer.bos_token_id
        check_tokens(self.dialect, self.tokenizer, 0 if start is None else start)
        self._most = self.vocab_size
        try:
            self.lists([[0 if start is None else start]], LISTED)
        except _TooLong as refused:
            self._most = largest(refused.refusal, LISTED) or 1

    @cached_property
    def facts(self) -> Facts:
        """What the server says of the model."""
        return Facts(
            parameters=self.dialect.parameters,
            context_length=self.dialect.context_length,
            engine="remote",
            gives_lists=True,
        )

    @cached_property
    def generation_config(self) -> GenerationConfig:
        """The settings that lie beside the tokenizer; else the tokenizer's own end."""
        ends, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        return load_generation_config(self.source) or GenerationConfig(eos_token_id=ends, pad_token_id=pad)

    def scorer(self, vocab_size: int, device: torch.device) -> Scorer:
        return RemoteScorer(self, vocab_size, device)

    def lists(self, prompts: Sequence[Sequence[int]], count: int) -> list[List]:
        """The most probable tokens after each prompt: `count` of them, or all.

        Raises:
            ServerError: no answer in time, none that makes sense, or tokens that the model does not have.
        """
        found: list[List] = []
        for start in range(0, len(prompts), _AT_ONCE):
            try:
                found += self.dialect.lists(prompts[start : start + _AT_ONCE], min(count, self._most))
            except Refused as refusal:
                error = _TooLong(f"The base model's server {self.client.host} refuses: {refusal}.")
                error.refusal = refusal
                raise error from refusal
        beyond = next((token for one in found for token, _ in one if token >= self.vocab_size), None)
        if beyond is not None:
            raise ServerError(
                f"The base model's server {self.client.host} names the token {beyond}, and the model has "
                f"{self.vocab_size}: it runs another model now."
            )
        return found

    def longer(self, prompts: Sequence[Sequence[int]], known: Sequence[List]) -> list[List]:
        """Lists after some prompts that are twice as long as the known ones, or as long as the server gives them.

        Raises:
            UsageError: it gives none that are longer.
            ServerError: see `lists`.
        """
        length = min(map(len, known))
        while length < self._most:
            count = min(2 * length, self._most)
            try:
                found = self.lists(prompts, count)
            except _TooLong as refused:
                self._most = largest(refused.refusal, count) or length
                continue
            if min(map(len, found)) > length:
                return found
            self._most = length
        least = min(math.fsum(math.exp(value) for _, value in one) for one in known)
        raise UsageError(
            f"After {counted(len(prompts[0]), 'token')} its longest list, of {counted(length, 'token')}, has "
            f"{least:.1%} of p. To have more, {self.dialect.longer}."
        )


class _TooLong(ServerError):
    """The server refuses; perhaps the list that it is asked for is too long."""

    refusal: Refused


class RemoteScorer:
    """One text on a server; see `kad.method.scorer.Scorer`. It holds the tokens, and asks for rows."""

    reversible = True

    def __init__(self, model: RemoteModel, vocab_size: int, device: torch.device) -> None:
        self._model, self._vocab, self._device = model, vocab_size, device
        self._ids: list[int] = []

    @property
    def processed(self) -> int:
        return len(self._ids)

    def advance(self, ids: Tensor, keep: int) -> ListedRows:
        """Read ids (n,). Returns the rows (keep, vocab) at the last `keep` ids, in log-probabilities.

        Raises:
            ServerError: no answer in time, or none that makes sense. Nothing has been read then.
        """
        text = [*self._ids, *ids.tolist()]
        prompts = [text[:end] for end in range(len(text) - keep + 1, len(text) + 1)]
        lists = self._model.lists(prompts, LISTED)
        self._ids = text
        return _Window(self._model, self._vocab, prompts, lists).rows.changed(lambda part: part.to(self._device))

    def rollback(self, length: int) -> None:
        del self._ids[length:]

    def release(self) -> None:
        """The server's cache is the server's."""


@dataclass(frozen=True, eq=False)
class _Window:
    """What is known of p after some texts. Longer lists are asked for once.

    Attributes:
        model: the model.
        vocab: the entries of a row.
        texts: the texts.
        lists: the list after each of them.
    """

    model: RemoteModel
    vocab: int
    texts: Sequence[Sequence[int]]
    lists: Sequence[List]
    _longer: dict[int, ListedRows] = field(default_factory=dict)

    @property
    def rows(self) -> ListedRows:
        """(texts, vocab)."""
        logits = torch.full((len(self.lists), self.vocab), EXCLUDED)
        rest, bound = torch.empty(len(self.lists), 1), torch.empty(len(self.lists), 1)
        for at, known in enumerate(self.lists):
            here = [(token, value) for token, value in known if token < self.vocab]
            if here:
                logits[at, [token for token, _ in here]] = torch.tensor([value for _, value in here])
            # An id past the shared ones stands for no token: what it has stays in the rest.
            left = 1.0 - math.fsum(math.exp(value) for _, value in here)
            outside = 1.0 - math.fsum(math.exp(value) for _, value in known) + _ROUNDING
            every = len(known) >= self.model.vocab_size
            bound[at] = -math.inf if every else min(known[-1][1], math.log(max(outside, _ROUNDING)))
            rest[at] = math.log(max(left, _LEAST_REST))
        places = torch.arange(len(self.lists)).unsqueeze(-1)
        return ListedRows(logits, rest, bound, places, tuple((self.longer, at) for at in range(len(places))))

    def longer(self, indices: Sequence[int]) -> ListedRows:
        """Some of the rows again, (n, vocab), with longer lists."""
        new = [index for index in indices if index not in self._longer]
        if new:
            texts = [self.texts[index] for index in new]
            lists = self.model.longer(texts, [self.lists[index] for index in new])
            rows = _Window(self.model, self.vocab, texts, lists).rows
            self._longer.update({index: rows[at] for at, index in enumerate(new)})
        return ListedRows.stacked([self._longer[index] for index in indices])

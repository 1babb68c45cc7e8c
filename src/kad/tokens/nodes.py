"""The base model's next-token distributions at the sequences of its own tokens that a search asks for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from kad.errors import LogitsError
from kad.method.distribution import columns_above, problem_of, raised
from kad.method.scorer import Scorer
from kad.tokens.token_bytes import TokenBytes, whole_characters

# A search looks back over the last word and its open branches only.
_MOST_NODES = 64


@dataclass(frozen=True)
class Node:
    """What p says after one sequence of its tokens: p(u | h) over the canonical u, renormalized.

    Attributes:
        weights: (vocab,), in proportion to p; 0 for tokens that are not canonical here.
        whole: their sum, in float64.
        likely: p of the canonical ids that were at least `least` before that, largest first.
    """

    weights: Tensor
    whole: float
    likely: dict[int, float]

    def p(self, ids: int | Tensor) -> float:
        """The probability of an id, or of the ids (n,) together."""
        return float(self.weights[ids].sum(dtype=torch.float64)) / self.whole


class Nodes:
    """p at any sequence of answer tokens, by rolling the model's cache back and forth.

    What it returns depends on the sequence alone, never on what is in the cache.

    Args:
        scorer: the base model, its prompt processed.
        last: (vocab,), its logits after the prompt.
        tokens: its tokenizer.
        least: tokens of a smaller probability are neither checked for being canonical nor looked at one by one.
        temperature: the logits are divided by it.

    Raises:
        LogitsError: a row of logits that is not a distribution.

    Attributes:
        forwards: how many forward passes it took.
        path: the answer tokens that the scorer has read last.
    """

    def __init__(
        self, scorer: Scorer, last: Tensor, tokens: TokenBytes, least: float, temperature: float = 1.0
    ) -> None:
        self.forwards = 0
        self.tokens = tokens
        self._scorer, self._prompt, self._least = scorer, scorer.processed, least
        self._temperature, self._device = temperature, last.device
        self.path: tuple[int, ...] = ()
        self._nodes: OrderedDict[tuple[int, ...], Node] = OrderedDict()
        self._first = self._node((), last)

    def at(self, ids: tuple[int, ...]) -> Node:
        """p after its prompt and the answer tokens `ids`."""
        if not ids:
            return self._first
        if ids not in self._nodes:
            self._run(ids)
        self._nodes.move_to_end(ids)
        return self._nodes[ids]

    def _run(self, ids: tuple[int, ...]) -> None:
        shared = min(shared_length(self.path, ids), len(ids) - 1)
        self._scorer.rollback(self._prompt + shared)
        new = ids[shared:]
        logits = cast("Tensor", self._scorer.advance(torch.tensor(new, device=self._device), len(new)))
        self.forwards += 1
        self.path = ids
        for count, row in enumerate(logits, start=shared + 1):
            if ids[:count] not in self._nodes:
                self._nodes[ids[:count]] = self._node(ids[:count], row)
        while len(self._nodes) > max(_MOST_NODES, len(new)):
            self._nodes.popitem(last=False)

    def _node(self, ids: tuple[int, ...], logits: Tensor) -> Node:
        logits = raised(logits.cpu())
        logits = logits if self._temperature == 1.0 else logits / self._temperature
        weights = logits.softmax(dim=-1)
        weights[len(self.tokens.pieces) :] = 0.0
        text = self.tokens.bytes_of(ids)
        found = _at_least(weights, max(self._least, torch.finfo(weights.dtype).tiny))
        likely = {token: weight for token, weight in found.items() if self._is_canonical(text, ids, token)}
        weights[[token for token in found if token not in likely]] = 0.0
        whole = float(weights.sum(dtype=torch.float64)) or 1.0
        if whole != whole:
            raise LogitsError(problem_of("the base model's logits", logits))
        return Node(weights, whole, {token: weight / whole for token, weight in likely.items()})

    def _is_canonical(self, text: bytes, ids: tuple[int, ...], token: int) -> bool:
        piece = self.tokens.pieces[token]
        if piece is None:
            return True
        longer = text + piece
        return whole_characters(longer) < len(longer) or self.tokens.encode(longer) == (*ids, token)


def _at_least(weights: Tensor, least: float) -> dict[int, float]:
    """The ids with a weight of at least `least`, and their weights, largest first."""
    columns = columns_above(weights.unsqueeze(0), weights.new_tensor([least]))
    among = torch.arange(len(weights)) if columns is None else columns
    found = among[weights[among] >= least]
    return dict(sorted(zip(found.tolist(), weights[found].tolist(), strict=True), key=lambda item: -item[1]))


def shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    pairs = zip(first, second, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))

"""p read through q*'s tokenizer: the probability that p's text goes on with one of q*'s tokens.

With T the text that p writes and w the answer so far in q*'s tokens,

    phat(v | w) = Pr[ enc_q(T) starts with w v ] / Pr[ enc_q(T) starts with w ]

is a language model over q*'s tokens, so every rule holds with p replaced by phat. `Translation.read` computes a lower
bound of it that is a function of w alone; what it leaves out is the rest, and a rule defers it. See docs/method.md.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from kad.errors import LogitsError
from kad.method.distribution import at_temperature, columns_above, problem_of, raised
from kad.method.scorer import Scorer
from kad.tokens.token_bytes import TokenBytes, first_stop, whole_characters

# A search looks back over the last word and its open branches only.
_MOST_NODES = 64


@dataclass(frozen=True)
class Node:
    """What p says after one sequence of its tokens: p(u | h) over the canonical u, renormalized."""

    weights: Tensor  # (vocab,), in proportion to p; 0 for tokens that are not canonical here
    whole: float  # their sum, in float64
    likely: dict[int, float]  # p of the canonical ids that were at least `least` before that, largest first

    def p(self, ids: int | Tensor) -> float:
        """The probability of an id, or of the ids (n,) together."""
        return float(self.weights[ids].sum(dtype=torch.float64)) / self.whole


class Nodes:
    """p at any sequence of answer tokens, by rolling the model's cache back and forth.

    What it returns depends on the sequence alone, never on what is in the cache.

    Args:
        scorer: the base model, its prompt processed.
        prompt: the tokens of its prompt.
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
        self,
        scorer: Scorer,
        prompt: Sequence[int],
        last: Tensor,
        tokens: TokenBytes,
        least: float,
        temperature: float = 1.0,
    ) -> None:
        self.forwards = 0
        self.tokens = tokens
        self._scorer, self._prompt, self._least = scorer, prompt, least
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
        self._scorer.rollback(len(self._prompt) + shared)
        unread = torch.tensor([*self._prompt, *ids][self._scorer.processed :], device=self._device)
        logits = cast("Tensor", self._scorer.advance(unread, len(ids) - shared))
        self.forwards += 1
        self.path = ids
        for count, row in enumerate(logits, start=shared + 1):
            if ids[:count] not in self._nodes:
                self._nodes[ids[:count]] = self._node(ids[:count], row)
        while len(self._nodes) > max(_MOST_NODES, len(logits)):
            self._nodes.popitem(last=False)

    def _node(self, ids: tuple[int, ...], logits: Tensor) -> Node:
        logits = at_temperature(raised(logits.cpu()), self._temperature)
        weights = logits.softmax(dim=-1)
        weights[len(self.tokens.pieces) :] = 0.0
        text = self.tokens.bytes_of(ids)
        candidates = _at_least(weights, max(self._least, torch.finfo(weights.dtype).tiny))
        likely = {token: weight for token, weight in candidates.items() if self._is_canonical(text, ids, token)}
        weights[[token for token in candidates if token not in likely]] = 0.0
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
    ids = among[weights[among] >= least]
    return dict(sorted(zip(ids.tolist(), weights[ids].tolist(), strict=True), key=lambda item: -item[1]))


def shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    pairs = zip(first, second, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


# The answer's last tokens, in which a boundary is forced where they are not what the tokenizer would make.
_WINDOW = 24


@dataclass(frozen=True)
class Reading:
    """One row of phat."""

    p: dict[int, float]  # the lower bound of phat by token of q*, where it is not 0
    rest: float  # the probability of p that no token of q* stands for: 1 - sum of `p`


@dataclass(frozen=True)
class _Branch:
    """A way in which p may have written the answer so far and more."""

    mass: float
    ids: tuple[int, ...]
    text: bytes
    ended: bool

    def __lt__(self, other: _Branch) -> bool:
        """Largest mass first; equal masses by their tokens, so that the order depends on the answer alone."""
        return (-self.mass, self.ids) < (-other.mass, other.ids)


class Translation:
    """The base model's next-token distribution in the aligned model's tokens.

    Args:
        nodes: the base model after its prompt.
        aligned: the aligned model's tokenizer.
        opened: bytes that p writes before the answer begins (the space after "Answer:" that p's first token takes in).
        stops: texts by which p's own prompt format ends an answer ("\\nQuestion:"); there p's text ends.
        end: q*'s end token. The mass of p's texts that have no more than the answer so far goes to it. None: to the
            rest.
        least_branch: a branch of less than this share is not pursued; its mass belongs to the rest.
        most_branches: no more than so many are pursued, the largest first.
    """

    def __init__(
        self,
        nodes: Nodes,
        aligned: TokenBytes,
        *,
        opened: bytes = b"",
        stops: Sequence[bytes] = (),
        end: int | None = None,
        least_branch: float = 0.05,
        most_branches: int = 32,
    ) -> None:
        self._nodes, self._base, self._aligned = nodes, nodes.tokens, aligned
        self._opened, self._stops, self._least_branch = opened, tuple(stops), least_branch
        self._end, self._most_branches = end, most_branches
        self._begun = tuple(stop[:count] for stop in stops for count in range(1, len(stop)))

    def read(self, answer: Sequence[int]) -> Reading:
        """The row of phat after the answer so far, in q*'s tokens."""
        answer = tuple(answer)
        text = self._opened + self._aligned.bytes_of(answer)
        masses: dict[int, float] = defaultdict(float)
        rest = 0.0
        if whole_characters(text) == len(text):
            tail = self._canonical_tail(answer)
            start = len(text) - len(self._aligned.bytes_of(tail))
            branches, rest = self._branches(text)
            least = self._least_branch * (rest + sum(branch.mass for branch in branches))
            open_branches: list[_Branch] = []
            pursued = 0
            while True:
                for branch in branches:
                    token = self._next_token(branch, tail, start, len(text))
                    if token == -1 and branch.ended and self._end is not None:
                        token = self._end
                    if token == -1 and not branch.ended and branch.mass >= least:
                        heapq.heappush(open_branches, branch)
                    elif token == -1:
                        rest += branch.mass
                    elif token is not None:
                        masses[token] += branch.mass
                if not open_branches or pursued == self._most_branches:
                    break
                pursued += 1
                branch = heapq.heappop(open_branches)
                branches, left = self._grow(branch.ids, branch.text, branch.mass, text)
                rest += left
            rest += sum(branch.mass for branch in open_branches)
        total = sum(masses.values()) + rest
        return (
            Reading({token: mass / total for token, mass in masses.items()}, rest / total)
            if total > 0
            else Reading({}, 1.0)
        )

    def _canonical_tail(self, answer: tuple[int, ...]) -> tuple[int, ...]:
        """The longest of the answer's last tokens that are what the tokenizer makes of their text.

        A sampled answer need not be canonical as a whole. The condition then is that p's text starts with the bytes
        before the tail, and that the tokenizer makes the tail of what follows them.
        """
        for start in range(max(0, len(answer) - _WINDOW), len(answer)):
            tail = answer[start:]
            text = self._aligned.bytes_of(tail)
            if whole_characters(text) == len(text) and self._aligned.encode(text) == tail:
                return tail
        return ()

    def _branches(self, text: bytes) -> tuple[list[_Branch], float]:
        """Every way in which a token of p can cross the end of `text`, and the mass of those left out.

        For each cut of the text one head: the canonical tokens before the cut; then the tokens that begin with the
        bytes behind it, and go on (for the cut at the end: all tokens).
        """
        heads = []
        for cut in range(max(0, len(text) - self._base.longest + 1), len(text) + 1):
            if whole_characters(text[:cut]) < cut or not self._base.is_extended(text[cut:]):
                continue
            head = self._base.encode(text[:cut])
            if self._base.is_stepwise(head):
                heads.append((head, text[:cut]))
        whole = self._base.encode(text)
        shared = min((shared_length(head, whole) for head, _ in heads), default=0)
        # Those that p has passed on its way come first: they cost no forward, and tell how little the others matter.
        heads.sort(key=lambda head: head[0] != whole[: len(head[0])])
        branches: list[_Branch] = []
        rest = total = 0.0
        for head, before in heads:
            mass, reached = self._mass(head, whole, shared, self._least_branch * total)
            if not reached:
                rest += mass
                continue
            grown, left = self._grow(head, before, mass, text)
            branches += grown
            rest += left
            total += left + sum(branch.mass for branch in grown)
        return branches, rest

    def _mass(self, head: tuple[int, ...], whole: tuple[int, ...], shared: int, least: float) -> tuple[float, bool]:
        """p(head | its first `shared` tokens), or a bound of it where it is too small to be worth a forward."""
        mass = 1.0
        for count in range(shared, len(head)):
            if head[:count] != whole[:count] and mass < least:
                return mass, False
            mass *= self._nodes.at(head[:count]).p(head[count])
        return mass, mass > 0.0 and mass >= least

    def _grow(self, ids: tuple[int, ...], text: bytes, mass: float, answer: bytes) -> tuple[list[_Branch], float]:
        """The branches after one more token of p, and the mass of the tokens that are not looked at one by one.

        Where p's text has not yet reached the end of the answer, its next token must take in the rest, and go on.

        Args:
            ids, text, mass: where p is.
            answer: the text that it must begin with.
        """
        node, missing = self._nodes.at(ids), answer[len(text) :]
        inside = len(text) < len(answer)
        likely = node.likely.items()
        chosen = [(token, share) for token, share in likely if not inside or self._base.extends(token, missing)]
        whole = node.p(self._base.extensions(missing)) if inside else 1.0
        branches = [
            self._cut_at_stop(mass * share, (*ids, token), text, self._base.pieces[token], len(answer))
            for token, share in chosen
        ]
        return branches, mass * max(whole - sum(share for _, share in chosen), 0.0)

    def _cut_at_stop(self, mass: float, ids: tuple[int, ...], text: bytes, piece: bytes | None, end: int) -> _Branch:
        """The branch, ended where p's text ends: at a special token, or before a stop string that ends past the answer.

        One that lies in the answer itself was q*'s to write, and p goes on reading.
        """
        if piece is None:
            return _Branch(mass, ids, text, True)
        longer = text + piece
        place = first_stop(longer, self._stops, max(len(text), end))
        return _Branch(mass, ids, longer[:place], place is not None)

    def _next_token(self, branch: _Branch, tail: tuple[int, ...], start: int, end: int) -> int | None:
        """q*'s token after the answer on this branch; -1 while it is open (or the text ends), None where the branch
        is not the answer at all: q*'s tokenizer makes other tokens of it."""
        text = branch.text[start:]
        if branch.ended and len(branch.text) < end:
            return -1
        if branch.ended:
            known = self._aligned.encode(text[: whole_characters(text)])
        elif branch.text.endswith(self._begun):
            return -1
        else:
            known = self._aligned.settled(text, tail)
        shared = min(len(known), len(tail))
        if known[:shared] != tail[:shared]:
            return None
        if branch.ended and len(known) < len(tail):
            return None
        return known[len(tail)] if len(known) > len(tail) else -1

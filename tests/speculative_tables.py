"""Tiny table models and a source of randomness that enumerates every outcome, for exact tests of the real loop."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import torch
from torch import Tensor
from transformers import EosTokenCriteria, LogitsProcessorList, StoppingCriteriaList

from kad.engines.transformers.speculative import stop_rule
from kad.method.composition import Composition, compose
from kad.method.distribution import Rows, move_to_rest
from kad.method.scorer import Scorer
from kad.method.speculation.loop import SpeculativeLoop
from kad.method.speculation.policies import choose_policy, warp_of
from kad.method.speculation.windows import FixedWindow, WindowSize
from kad.method.verification import Verifier
from kad.rules import Rule

Sequences = dict[tuple[int, ...], float]
PROMPT = (0, 1)
ROLES = ("base", "aligned", "reference")


@cache
def table_row(role: str, prefix: tuple[int, ...], vocab: int) -> Tensor:
    """The logits (vocab,) of a table model: sharp and different at every prefix, some tokens impossible for p."""
    generator = torch.Generator().manual_seed(hash((ROLES.index(role), vocab, *prefix)) % 2**31)
    row = 2.0 * torch.randn(vocab, generator=generator, dtype=torch.float64)
    if role == "base" and vocab > 2 and sum(prefix) % 3 == 0:
        row[int(row.argmin())] = -torch.inf
    return row


class TableScorer:
    """A model whose logits are a table over all prefixes; its `seen` tokens are what a cache would hold."""

    def __init__(self, role: str, vocab: int) -> None:
        self.role, self.vocab, self.seen, self.processed = role, vocab, [], 0

    def advance(self, ids: Tensor, keep: int) -> Tensor:
        assert keep <= len(ids), "logits are asked for at positions that are not processed"
        rows = []
        for token in ids.tolist():
            self.seen.append(token)
            rows.append(table_row(self.role, tuple(self.seen), self.vocab))
        self.processed += len(ids)
        return torch.stack(rows[-keep:])

    def rollback(self, length: int) -> None:
        self.processed = min(self.processed, length)
        del self.seen[self.processed :]


class Turns:
    """Windows of these sizes, over and over."""

    def __init__(self, *sizes: int) -> None:
        self.sizes, self._next = sizes, 0

    def next(self) -> int:
        self._next += 1
        return self.sizes[(self._next - 1) % len(self.sizes)]

    def observe(self, size: int, seconds: float | None, chance: Sequence[float]) -> None:
        """They learn nothing."""


class OnlyForward(TableScorer):
    """A table model that cannot drop tokens, as one with recurrent layers; see `kad.method.replay`."""

    def __init__(self, role: str, vocab: int) -> None:
        super().__init__(role, vocab)
        self.passes: list[int] = []  # how many tokens each forward pass read

    def advance(self, ids: Tensor, keep: int) -> Tensor:
        self.passes.append(len(ids))
        return super().advance(ids, keep)

    def rollback(self, length: int) -> None:
        raise AssertionError("this model cannot do that")

    def save(self) -> tuple[int, ...]:
        return tuple(self.seen)

    def restore(self, saved: tuple[int, ...]) -> None:
        self.seen, self.processed = list(saved), len(saved)

    def release(self) -> None:
        """Nothing to give back."""


class Script:
    """Plays every sequence of random outcomes, one run after another, each with its probability."""

    def __init__(self) -> None:
        self.path: list[list[int]] = []  # the decisions of a run: [option chosen, number of options]
        self.position, self.probability = 0, 1.0

    def runs(self) -> Iterator[None]:
        while True:
            self.position, self.probability = 0, 1.0
            yield
            assert self.position == len(self.path), "a run repeated with the same outcomes took another course"
            while self.path and self.path[-1][0] + 1 == self.path[-1][1]:
                self.path.pop()
            if not self.path:
                return
            self.path[-1][0] += 1

    def _choose(self, probabilities: Sequence[float]) -> int:
        possible = [i for i, p in enumerate(probabilities) if p > 0]
        if self.position == len(self.path):
            self.path.append([0, len(possible)])
        chosen = possible[self.path[self.position][0]]
        self.position += 1
        self.probability *= probabilities[chosen]
        return chosen

    def leading(self, chances: Tensor) -> Tensor:
        probabilities = chances.tolist()
        reach = [math.prod(probabilities[:i]) for i in range(len(probabilities) + 1)]
        stop = [reach[i] * (1 - p) for i, p in enumerate(probabilities)]
        return torch.tensor(self._choose([*stop, reach[-1]]))

    def last(self, chances: Tensor) -> Tensor:
        probabilities = chances.tolist()
        later = [math.prod(1 - p for p in probabilities[i:]) for i in range(len(probabilities) + 1)]
        return torch.tensor(self._choose([later[0], *(p * later[i + 1] for i, p in enumerate(probabilities))]))

    def draw(self, weights: Tensor) -> Tensor:
        assert bool((weights >= 0).all())
        assert bool(weights.any()), "a draw from nothing"
        return torch.tensor(self._choose((weights / weights.sum()).tolist()))


def exact_distribution(
    rule: Rule,
    *,
    vocab: int,
    new_tokens: int,
    window: int | Sequence[int],
    verifier: Verifier,
    drafter: str = "aligned",
    processors: LogitsProcessorList | None = None,
    eos: int | None = None,
    deferral_temperature: float = 1.0,
    greedy: bool = False,
    scorer: Callable[[str, int], Scorer] = TableScorer,
) -> Sequences:
    """The distribution over continuations that the loop produces, by running it once for every random outcome."""
    roles = {"base", "aligned", drafter} | ({"reference"} if rule.needs_reference else set())
    found: Sequences = defaultdict(float)
    script = Script()
    for _ in script.runs():
        ids = torch.tensor([*PROMPT, *[0] * new_tokens])
        criteria = StoppingCriteriaList([] if eos is None else [EosTokenCriteria(eos)])
        windows: WindowSize = FixedWindow(window) if isinstance(window, int) else Turns(*window)
        loop = SpeculativeLoop(
            ids=ids,
            length=len(PROMPT),
            drafter=drafter,
            scorers={role: scorer(role, vocab) for role in roles},
            policy=choose_policy(
                composition=Composition(rule, deferral_temperature),
                drafter=drafter,
                greedy=greedy,
                verifier=verifier,
                randomness=script,
                warp=warp_of(processors, ids, 0),
                records=None,
            ),
            window=windows,
            stop=stop_rule(criteria, ids, 0),
        )
        emitted = [item.token for items in loop.run() for item in items]
        assert emitted == ids[len(PROMPT) : loop.length].tolist()
        found[tuple(emitted)] += script.probability
    return dict(found)


def true_distribution(
    rule: Rule,
    *,
    vocab: int,
    new_tokens: int,
    processors: LogitsProcessorList | None = None,
    eos: int | None = None,
    deferral_temperature: float = 1.0,
    prefix: tuple[int, ...] = (),
    never: Tensor | None = None,
) -> Sequences:
    """The product of pi over every continuation of the prompt and `prefix`."""

    def pi(before: tuple[int, ...]) -> list[float]:
        rows = (table_row(role, before, vocab).unsqueeze(0) / deferral_temperature for role in ROLES)
        base, aligned, reference = rows
        p: Rows = base if never is None else move_to_rest(base, never)
        scores = compose(rule, p, aligned, reference if rule.needs_reference else None)
        if processors:
            scores = processors(torch.tensor([before]), scores)
        return torch.softmax(scores[0], dim=-1).tolist()

    def extend(tokens: tuple[int, ...], probability: float) -> Iterator[tuple[tuple[int, ...], float]]:
        if len(tokens) == new_tokens or (tokens and tokens[-1] == eos):
            yield tokens, probability
            return
        for token, p in enumerate(pi(PROMPT + prefix + tokens)):
            if p > 0:
                yield from extend((*tokens, token), probability * p)

    return dict(extend((), 1.0))


def total_variation(first: Sequences, second: Sequences) -> float:
    keys = first.keys() | second.keys()
    return 0.5 * math.fsum(abs(first.get(k, 0.0) - second.get(k, 0.0)) for k in keys)

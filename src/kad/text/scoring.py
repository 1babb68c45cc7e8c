"""A finished text under a composed model: every token, the perplexity, and the speed of plain decoding."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from kad.engines.pair import pair_of
from kad.errors import OptionError, UsageError
from kad.method.composition import acceptance, compose, composed, deferred_mass, in_order, origin_shares
from kad.method.rules import CascadeRule, ThresholdRule
from kad.text.contexts import Context, check_tokens
from kad.text.keywords import Asked, asking, check
from kad.text.prompts import Prompt, start_token, text_ids
from kad.words import counted

if TYPE_CHECKING:
    from kad.engines.load import Loaded
    from kad.method.composition import Composition
    from kad.method.distribution import Rows
    from kad.method.scorer import Scorer
    from kad.text.answer import Answer


LOGITS_AT_ONCE = 8_000_000
"""Logits of one model that exist at once: 32 MB in float32."""


@dataclass(frozen=True)
class Chunk:
    """Some consecutive tokens of a text, and the logits that each model had for them.

    Attributes:
        tokens: (n,), the tokens.
        logits: role -> (n, vocab), in float32. The rows of p may have a rest.
    """

    tokens: Tensor
    logits: dict[str, Rows]


@dataclass(frozen=True, repr=False)
class Score:
    """What a composed model thinks of a text: one entry a token, all (n,) on the CPU.

    Attributes:
        token_ids: the tokens.
        log_pi, log_p, log_aligned: log-probabilities under the composed, the base and the aligned model. log_p is
            -10,000 where p is in no list of the server that runs the base model, and not known.
        base_share: which part of pi came from the base model; None for product rules.
        deferred_mass: alpha, the mass that the base model hands over at this position; None for product rules.
        acceptance: beta = sum_v min(pi_v, q*_v), the probability that a draft from q* is accepted here.
        tau: the probability that a token of the base model needs to be kept (infinity: none is kept); None where the
            rule has no threshold.
    """

    token_ids: list[int]
    log_pi: Tensor
    log_p: Tensor
    log_aligned: Tensor
    base_share: Tensor | None
    deferred_mass: Tensor | None
    acceptance: Tensor
    tau: Tensor | None

    def __repr__(self) -> str:
        return f"Score({counted(len(self.token_ids), 'token')}, log pi {float(self.log_pi.sum()):.2f})"


def score(model: Loaded, prompt: Prompt, text: str | Sequence[int], **keywords: Unpack[Asked]) -> Score:
    """What a composed model says about every token of a finished text. Sampling options have no meaning here.

    Args:
        model: a pair, as `kad.load` gives it.
        prompt: what comes before the text: what the user says, messages, or token ids.
        text: the text, or its token ids.
        **keywords: how the pair is asked and composed: `rule="primal:0.8"`, `raw=True`, ..., see
            `kad.text.keywords.Asked`.

    Raises:
        UsageError: there is no token before the text, or no token in it, or an unknown keyword.
        RuleError: a bad rule.

    Example:
        >>> found = kad.score(model, "Ann has 5 pens. She buys 8 more. How many?", "First, 5 + 8 = 13.")
        >>> found.log_pi.sum(), found.deferred_mass.mean()
    """
    check("kad.score", keywords, Asked)
    pair = pair_of(model)
    pair.needs_logits("kad.score")
    context = asking(prompt, keywords).context(pair)
    composition = pair.composed_by(keywords.get("rule"), keywords.get("deferral_temperature"))
    return score_tokens(pair, context, text_ids(pair.tokenizer, text, context.ids), composition)


def score_tokens(
    model: Loaded, prompt: Context | Sequence[int], token_ids: Sequence[int], composition: Composition
) -> Score:
    """As `score`, of token ids and under a composition."""
    pair = pair_of(model)
    context = Context.of(prompt, pair)
    chunks = logits_of(pair, context, token_ids, composition=composition)
    rows = [_score_chunk(composition, chunk) for chunk in chunks]
    joined = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    optional = {name: joined.pop(name, None) for name in ("base_share", "deferred_mass", "tau")}
    return Score(token_ids=list(token_ids), **joined, **optional)  # type: ignore[arg-type]


@torch.no_grad()
def _score_chunk(composition: Composition, chunk: Chunk) -> dict[str, Tensor]:
    rule, logits = composition.rule, in_order(chunk.logits)
    rows = composed(composition, *logits)
    at = chunk.tokens.unsqueeze(-1)

    def of_token(rows: Tensor) -> Tensor:
        return rows.gather(-1, at).squeeze(-1)

    scores = {
        "log_pi": of_token(compose(composition, *logits)),
        "log_p": of_token(rows.base.log_probs()),
        "log_aligned": of_token(rows.aligned.log_probs()),
        "acceptance": acceptance(composition, *logits),
    }
    if isinstance(rule, CascadeRule):
        scores["base_share"] = of_token(origin_shares(composition, *logits[:2])[0])
        scores["deferred_mass"] = deferred_mass(composition, *logits[:2])
    if isinstance(rule, ThresholdRule):
        scores["tau"] = rule.log_tau(rows.base, rows.aligned).exp()
    return {name: values.cpu() for name, values in scores.items()}


def logits_of(
    model: Loaded,
    prompt: Context | Sequence[int],
    token_ids: Sequence[int],
    *,
    composition: Composition | None = None,
    roles: Sequence[str] | None = None,
    others: Mapping[str, Scorer] | None = None,
) -> Iterator[Chunk]:
    """The logits of a pair's models at every token of a text, one forward pass of each, chunk by chunk.

    Args:
        model: the pair.
        prompt: what stands before the text, at least one token.
        token_ids: the tokens of the text, at least one.
        composition: how the rows will be composed. None: as the model says.
        roles: the models to run. None: those that the composition needs.
        others: scorers of further models that speak the same tokens, by name.

    Raises:
        UsageError: no token before the text, or none in it.
    """
    pair = pair_of(model)
    context = Context.of(prompt, pair)
    if not context.ids or not token_ids:
        raise UsageError("A score needs at least one token before the text and one in it.")
    check_tokens(pair, token_ids, "text")
    pair.room(context.longest, len(token_ids))
    composition = composition or pair.composition
    own = context.scorers(pair, composition, roles or pair.roles_of(composition))
    scorers = {**own, **(others or {})}
    ids = torch.tensor([*context.ids, *token_ids], device=pair.device)
    first, last = len(context.ids) - 1, len(ids) - 1
    chunk, start, end = 1, 0, first + 1
    while start < last:
        begin = max(start, first)
        with torch.no_grad():
            logits = {
                role: scorer.advance(ids[start:end], end - begin).to(torch.float32) for role, scorer in scorers.items()
            }
        yield Chunk(ids[begin + 1 : end + 1], logits)
        chunk = max(1, LOGITS_AT_ONCE // logits["aligned"].shape[-1])
        start, end = end, min(end + chunk, last)


PART = 1024
"""Tokens that are read at once, where the models allow it."""


@dataclass(frozen=True)
class Perplexity:
    """What the models think of a text.

    Attributes:
        tokens: of the text.
        words: of the text, as lm-eval counts them: what stands between white space.
        bytes: of the text in UTF-8.
        composed, base, aligned: the log-probability of the text, in nats. None of a base model on a server, which names
            the most probable tokens alone.
        deferred_mass: the mean of alpha over the tokens. None for product rules.
        acceptance: the mean of beta over the tokens.
    """

    tokens: int
    words: int
    bytes: int
    composed: float
    base: float | None
    aligned: float
    deferred_mass: float | None
    acceptance: float

    def of(self, who: str = "composed", unit: str = "tokens") -> float:
        """The perplexity exp(-log-probability / number of units).

        Args:
            who: "composed", "base" or "aligned".
            unit: "tokens", "words" or "bytes".

        Raises:
            UsageError: it is not known.
        """
        if getattr(self, who) is None:
            raise UsageError("The base model is on a server, which names its most probable tokens alone.")
        exponent: float = -getattr(self, who) / getattr(self, unit)
        return math.exp(exponent) if exponent < 700 else math.inf

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def perplexity(
    model: Loaded,
    text: str | Sequence[int],
    *,
    part_length: int | None = None,
    rule: Any = None,
    deferral_temperature: float | None = None,
) -> Perplexity:
    """The log-probability of a text that stands alone, without a chat template.

    A long text is read in parts, one after the other. The first token of a part is predicted from the token before it;
    the first token of the text from the start token (or the end token, where there is none). These are the rolling
    log-likelihoods of lm-eval.

    Args:
        model: a pair, as `kad.load` gives it.
        text: the text, or its token ids.
        part_length: how many tokens are read at once. The default is 1,024, or the models' context if that is shorter.
        rule: replaces the model's own rule.
        deferral_temperature: replaces the model's own deferral temperature.

    Raises:
        UsageError: an empty text, or a part that is longer than the models' context.

    Example:
        >>> kad.perplexity(model, "First, 5 + 8 = 13.").of("composed", "words")
    """
    pair = pair_of(model)
    pair.needs_logits("kad.perplexity")
    tokenizer = pair.tokenizer
    ids = text_ids(tokenizer, text)
    if not ids:
        raise UsageError("The text is empty: the tokenizer makes no token of it.")
    most = pair.context_length or PART
    size = min(PART, most) if part_length is None else part_length
    if not 1 <= size <= most:
        raise OptionError(f"`part_length` must be from 1 to the models' context of {most}, but is {size}.")
    start = start_token(tokenizer)
    composition = pair.composed_by(rule, deferral_temperature)
    scores = [score_tokens(pair, before, part, composition) for before, part in _parts([start, *ids], size)]

    def total(name: str) -> float:
        return float(sum(getattr(score, name).double().sum() for score in scores))

    written = text if isinstance(text, str) else tokenizer.decode(ids)
    return Perplexity(
        tokens=len(ids),
        words=len(written.split()) or 1,
        bytes=len(written.encode()),
        composed=total("log_pi"),
        base=None if pair.gives_lists else total("log_p"),
        aligned=total("log_aligned"),
        deferred_mass=None if scores[0].deferred_mass is None else total("deferred_mass") / len(ids),
        acceptance=total("acceptance") / len(ids),
    )


def _parts(ids: Sequence[int], size: int) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """What stands before each part (one token), and the part."""
    for first in range(1, len(ids), size):
        yield ids[first - 1 : first], ids[first : first + size]


@torch.no_grad()
def plain_step_seconds(model: Loaded, composition: Composition, answer: Answer, steps: int = 8) -> float | None:
    """The seconds of a step of plain decoding at the end of this answer: the median of `steps`.

    None for an answer with fewer than two tokens.
    """
    steps = min(steps, len(answer.token_ids) - 1)
    if steps < 1:
        return None
    pair = pair_of(model)
    ids = torch.tensor([*answer.prompt_ids, *answer.token_ids], device=pair.device)[:-1]
    context = Context.of(answer.prompt, pair)
    scorers = context.scorers(pair, composition, pair.roles_of(composition))
    for scorer in scorers.values():
        scorer.advance(ids[:-steps], 1)
    times = []
    for token in torch.split(ids[-steps:], 1):
        started = time.perf_counter()
        rows = {role: scorer.advance(token, 1) for role, scorer in scorers.items()}
        compose(composition, *in_order(rows)).argmax().item()
        times.append(time.perf_counter() - started)
    return median(times)

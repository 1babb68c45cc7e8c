"""A finished text under a composed model: each model's logits, and what the rule makes of every token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kad.engines.pair import pair_of
from kad.errors import UsageError
from kad.method.composition import acceptance, compose, composed, deferred_mass, in_order, origin_shares
from kad.method.rules import CascadeRule, ThresholdRule
from kad.text.contexts import AnyBasePrompt, Asking, Context, check_tokens
from kad.text.prompts import Prompt, text_ids

if TYPE_CHECKING:
    from kad.engines.load import Loaded
    from kad.method.composition import Composition
    from kad.method.distribution import Rows
    from kad.method.scorer import Scorer

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


@dataclass(frozen=True)
class Score:
    """What a composed model thinks of a text: one entry a token, all (n,) on the CPU.

    Attributes:
        token_ids: the tokens.
        log_pi, log_p, log_aligned: log-probabilities under the composed, the base and the aligned model.
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


def score(
    model: Loaded,
    prompt: Prompt,
    text: str | Sequence[int],
    *,
    system: str | None = None,
    thinking: bool | None = None,
    raw: bool = False,
    base_prompt: AnyBasePrompt | None = None,
    rule: Any = None,
    deferral_temperature: float | None = None,
) -> Score:
    """What a composed model says about every token of a finished text. Sampling options have no effect here.

    Args:
        model: a pair, as `kad.load` gives it.
        prompt: what comes before the text: what the user says, messages, or token ids.
        text: the text, or its token ids.
        system: a system message before the prompt.
        thinking: for chat templates with a thinking switch. None leaves it to the template.
        raw: use the prompt without the chat template.
        base_prompt: how the base model is asked, see `kad.generate`.
        rule: replaces the model's own rule.
        deferral_temperature: replaces the model's own deferral temperature.

    Raises:
        UsageError: there is no token before the text, or no token in it.
        RuleError: a bad rule.

    Example:
        >>> found = kad.score(model, "Ann has 5 pens. She buys 8 more. How many?", "First, 5 + 8 = 13.")
        >>> found.log_pi.sum(), found.deferred_mass.mean()
    """
    pair = pair_of(model)
    pair.needs_logits("kad.score")
    context = Asking(prompt, system, thinking, raw, base_prompt).context(pair)
    composition = pair.composed_by(rule, deferral_temperature)
    return score_tokens(pair, context, text_ids(pair.tokenizer, text), composition)


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

    found = {
        "log_pi": of_token(compose(composition, *logits)),
        "log_p": of_token(rows.base.log_probs()),
        "log_aligned": of_token(rows.aligned.log_probs()),
        "acceptance": acceptance(composition, *logits),
    }
    if isinstance(rule, CascadeRule):
        found["base_share"] = of_token(origin_shares(composition, *logits[:2])[0])
        found["deferred_mass"] = deferred_mass(composition, *logits[:2])
    if isinstance(rule, ThresholdRule):
        found["tau"] = rule.log_tau(rows.base, rows.aligned).exp()
    return {name: values.cpu() for name, values in found.items()}


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
    composition = composition or pair.composition
    own = context.scorers(pair, composition, roles or pair.roles_of(composition), rollback=False)
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

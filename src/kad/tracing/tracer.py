"""Makes traces: each model of a pair reads the answer once, and the trace says what the rule did at every position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

import kad
from kad.engines.nested import PairAsModel
from kad.engines.pair import Pair, pair_of
from kad.errors import UsageError
from kad.method.composition import Composition, RuleLike, composed, in_order, raise_if_bad
from kad.method.distribution import Rows
from kad.method.rules import CascadeRule, ThresholdRule
from kad.method.rules.describe import family
from kad.pair.sources import resolve_pair
from kad.text.answer import Piece
from kad.text.contexts import Context
from kad.text.prompts import decode, pieces
from kad.text.scoring import logits_of
from kad.tracing.positions import NOTHING_KEPT, Candidate, Position
from kad.tracing.schema import Trace

if TYPE_CHECKING:
    from kad.engines.load import Loaded

FLOOR = 0.01
"""Every token with p >= FLOOR is recorded: no threshold from here up needs more of p than a trace has."""
HEAD = 8
"""At least this many tokens of each of p, q* and pi are recorded."""


def trace_tokens(
    model: Loaded,
    tokenizer: Any,
    prompt: Context | Sequence[int],
    output_ids: Sequence[int],
    *,
    events: Sequence[Piece] = (),
    generation: dict[str, Any] | None = None,
) -> Trace:
    """The trace of an answer under the model's rule in force.

    The probabilities are those of the composed model's log pi itself: temperature and warpers act after it.

    Args:
        tokenizer: of the aligned model.
        prompt: the context of the answer, or its token ids.
        events: the pieces of the answer, if they say what speculation did at each token.
        generation: the field of that name.

    Raises:
        UsageError: an empty prompt or answer, or events of another length.
    """
    pair = pair_of(model)
    context = Context.of(prompt, pair)
    if not context.ids or not output_ids:
        raise UsageError("A trace needs at least one token before the answer and one in it.")
    if events and len(events) != len(output_ids):
        raise UsageError(f"{len(events)} events for {len(output_ids)} tokens: give one a token, or none.")
    positions = list(_positions(pair, context, output_ids))
    texts = pieces(tokenizer, output_ids, context.ids, special=True)
    positions = [replace(position, text=text) for position, text in zip(positions, texts, strict=True)]
    if events:
        positions = [with_event(position, piece) for position, piece in zip(positions, events, strict=True)]
    vocabulary = {token: tokenizer.decode([token]) for token in sorted(mentioned(positions))}
    head = head_of(pair, pair.composition, context, generation or {"source": "given"})
    return Trace(**head, prompt=tokenizer.decode(context.ids), vocabulary=vocabulary, positions=tuple(positions))


def head_of(pair: Pair, composition: Composition, context: Context, generation: dict[str, Any]) -> dict[str, Any]:
    """The fields of a trace but its prompt, its vocabulary and its positions."""
    rule = composition.rule
    return {
        "rule": rule.to_dict(),
        "rule_text": str(rule),
        "family": family(type(rule)),
        "models": origins(pair, composition),
        "generation": generation,
        "deferral_temperature": composition.deferral_temperature,
        "base_prompt": _own_prompt(pair, context),
        "kad_version": kad.__version__,
    }


def record(
    composition: RuleLike,
    tokens: Tensor,
    base_logits: Rows,
    aligned_logits: Tensor,
    reference_logits: Tensor | None = None,
) -> list[Position]:
    """Positions (without text) from logits: what `trace` writes down, as a function of tensors.

    Args:
        tokens: (n,), the emitted tokens.
        base_logits, aligned_logits, reference_logits: (n, vocab), the models' logits for those tokens.
    """
    composition = Composition.of(composition)
    rule = composition.rule
    rows = composed(composition, base_logits, aligned_logits, reference_logits)
    base, aligned, log_pi = rows.base, rows.aligned, rows.log_pi()
    raise_if_bad(log_pi, composition, base_logits, aligned_logits, reference_logits)
    p, q, pi = base.log_probs().exp(), aligned.log_probs().exp(), log_pi.exp()
    acceptance = torch.minimum(pi, q).sum(-1)
    keep = rows.keep() if isinstance(rule, CascadeRule) else None
    alpha = rows.cascade()[1] if keep is not None else None
    log_tau = rule.log_tau(base, aligned) if isinstance(rule, ThresholdRule) else None
    entropy = torch.special.entr(p).sum(-1)
    divergence = _divergence(base.log_probs(), aligned.log_probs())
    overlap = torch.minimum(p, q).sum(-1)
    nobody = torch.zeros(len(tokens)) if base.log_rest is None else base.log_rest.exp().squeeze(-1)
    positions = []
    for row, token in enumerate(tokens.tolist()):
        k = float(keep[row, token]) if keep is not None else None
        base_share = _base_share(p[row, token], q[row, token], k, alpha[row] if alpha is not None else None)
        candidates, floor = _candidates(p[row], q[row], pi[row])
        if base.listed is not None:  # a token outside of the list may have as much
            floor = max(floor, _short(base.listed.bound[row].exp().clamp(max=1.0)))
        positions.append(
            Position(
                token=token,
                text="",
                p=_short(p[row, token]),
                p_aligned=_short(q[row, token]),
                pi=_short(pi[row, token]),
                base_share=base_share,
                aligned_share=None if base_share is None else 1 - base_share,
                kept=k,
                deferred_mass=None if alpha is None else _short(alpha[row]),
                tau=None if log_tau is None else min(_short(log_tau[row].exp()), NOTHING_KEPT),
                acceptance=_short(acceptance[row]),
                floor=floor,
                candidates=candidates,
                rank=_rank(p[row], token, nobody[row]),
                entropy=_short(entropy[row]),
                divergence=_short(divergence[row]) if bool(divergence[row].isfinite()) else None,
                overlap=_short(overlap[row]),
                nobody=_short(nobody[row]),
            )
        )
    return positions


def _positions(pair: Pair, context: Context, output_ids: Sequence[int]) -> Iterator[Position]:
    within = context.scorers_within(pair, pair.roles_of(pair.composition))
    for chunk in logits_of(pair, context, output_ids, roles=tuple(pair.roles), others=within):
        rows = {role: logits.to("cpu") for role, logits in chunk.logits.items()}
        tokens = chunk.tokens.cpu()
        positions = record(pair.composition, tokens, *in_order(rows))
        if within:
            shares = {path: share.tolist() for path, share in leaf_shares(pair, rows, tokens).items()}
            for index, position in enumerate(positions):
                own = {path: float(f"{share[index]:.6g}") for path, share in shares.items()}
                yield replace(position, leaves=own or None)
        else:
            yield from positions


def leaf_shares(pair: Pair, rows: Mapping[str, Rows], tokens: Tensor) -> dict[str, Tensor]:
    """Which part of pi came from each model of a pair of pairs, by its path: (n,) each, and their sum is one.

    The share of a pair is divided among its parts by its own rule, at every depth. A product cannot be divided.

    Args:
        pair: the pair.
        rows: the logits (n, vocab) of its parts by role, and of their parts by path.
        tokens: (n,), the tokens.
    """
    if not isinstance(pair.rule, CascadeRule):
        return {}
    return _divided(pair, rows, tokens, "", torch.ones(len(tokens)))


def _divided(pair: Pair, rows: Mapping[str, Rows], tokens: Tensor, path: str, share: Tensor) -> dict[str, Tensor]:
    """`path` is that of the pair, and a point; `share` (n,) is the pair's."""
    own = {role: rows[f"{path}{role}"] for role in ("base", "aligned")}
    from_base = composed(pair.composition, *in_order(own)).from_base(tokens.unsqueeze(-1))[0].squeeze(-1)
    found: dict[str, Tensor] = {}
    for role, part in {"base": from_base, "aligned": 1 - from_base}.items():
        model, name = pair.models[role], f"{path}{role}"
        divides = isinstance(model, PairAsModel) and isinstance(model.pair.rule, CascadeRule)
        if divides and f"{name}.aligned" in rows:
            found |= _divided(cast("PairAsModel", model).pair, rows, tokens, f"{name}.", share * part)
        else:
            found[name] = share * part
    return found


def _base_share(p: Tensor, q: Tensor, k: float | None, alpha: Tensor | None) -> float | None:
    """The part of pi_v that came from p; a token that pi excludes counts as deferred."""
    if k is None or alpha is None:
        return None
    total = float(k * p + alpha * q)
    return _short(k * p / total) if total > 0 else 0.0


def _rank(p: Tensor, token: int, nobody: Tensor) -> int | None:
    """1 + the number of tokens that are more probable. None if the mass that belongs to no token could change it."""
    above, possible = ((rows > p[token]).sum() for rows in (p, p + nobody))
    others = possible - (p[token] + nobody > p[token]).long()
    return 1 + int(above) if bool(others == above) else None


def _divergence(log_p: Tensor, log_other: Tensor) -> Tensor:
    """KL(p || q*) of rows (n, vocab), (n,). Tokens that p excludes add nothing."""
    terms = log_p.exp() * (log_p - log_other)
    return torch.where(log_p == -torch.inf, 0.0, terms).sum(-1).clamp(min=0.0)


def _candidates(p: Tensor, q: Tensor, pi: Tensor) -> tuple[tuple[Candidate, ...], float]:
    """The recorded tokens of one position, and the floor above which none of p's is missing."""
    count = min(max(HEAD, int((p >= FLOOR).sum())), len(p))
    head = p.topk(count)
    tokens = head.indices.tolist()
    for other in (q, pi):
        tokens += [token for token in other.topk(min(HEAD, len(p))).indices.tolist() if token not in tokens]
    rows = tuple(Candidate(token, _short(p[token]), _short(q[token]), _short(pi[token])) for token in tokens)
    return rows, 0.0 if count == len(p) else FLOOR


def _short(value: Tensor) -> float:
    """Six significant digits: a trace is read by people and pages."""
    return float(f"{float(value):.6g}")


def with_event(position: Position, piece: Piece) -> Position:
    """A position that says what speculation did there."""
    return replace(
        position, event=piece.event, rejected_draft=piece.rejected_draft, dropped_drafts=piece.dropped_drafts
    )


def mentioned(positions: Sequence[Position]) -> set[int]:
    """Every token that these positions mention."""
    rows = {candidate.token for position in positions for candidate in position.candidates}
    own = (token for at in positions for token in (at.token, at.rejected_draft, *at.dropped_drafts))
    return rows | {token for token in own if token is not None}


def _own_prompt(pair: Pair, context: Context) -> str | None:
    """The base model's own prompt, in the words of its own tokenizer if it has one. None if it has no such prompt."""
    if context.base_ids is None:
        return None
    return decode(pair.base_tokenizer or pair.tokenizer, context.base_ids, special=True)


def origins(pair: Pair, composition: Composition) -> dict[str, str]:
    """Where each model that this composition runs came from, by role; see `public_name`."""
    places = {role: getattr(pair.config, role) for role in pair.roles_of(composition)}
    names = {role: (place.get("model") or place["tokenizer"]) if place else role for role, place in places.items()}
    return {role: public_name(str(name)) for role, name in names.items()}


def public_name(place: str) -> str:
    """A model or pair as others may see it: "tiny", a hub id, or a folder's name without the path to it.

    A trace is passed on, and where its maker keeps models is of no use to others.
    """
    if place == resolve_pair("tiny"):
        return "tiny"
    path = Path(place)
    return path.name if path.is_absolute() or path.parts[:1] in {(".",), ("..",)} else place

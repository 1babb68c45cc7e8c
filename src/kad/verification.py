"""Speculative verification: how many drafts stand, and which token follows them. Pure tensors.

A window of drafts d_1..d_W ~ q, each row given its prefix, is verified against pi so that what is emitted follows pi
exactly. Two verifiers, token by token [Spec] and as a block [Block]; two targets, sparse for threshold rules and dense
for everything else. Sources: [Spec] Leviathan et al., ICML 2023; Chen et al. 2023. [Block] Sun et al., "Block
Verification Accelerates Speculative Decoding", ICLR 2025. Sparse identities: docs/method.md, "Speculative decoding".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from kad.composition import Kept, compose_distributions, kept_tokens
from kad.distribution import Distribution
from kad.rules import ThresholdRule

# Where the kept heads span more tokens than this, and more than this share of the rows, index lists cost more than
# passes over the rows.
_MANY_TOKENS, _LARGE_SHARE = 4096, 0.05


class Randomness(Protocol):
    """Every random decision of the loop. The exact tests enumerate the outcomes instead of drawing them."""

    def leading(self, probabilities: Sequence[float]) -> int:
        """Toss one coin per probability; the number of successes before the first failure."""

    def last(self, probabilities: Sequence[float]) -> int:
        """Toss one coin per probability; the (one-based) position of the last success, 0 without any."""

    def draw(self, weights: Tensor) -> Tensor:
        """An index () drawn in proportion to `weights` (n,), which are >= 0 and not all zero."""


class Target(Protocol):
    """What a verifier must know of pi and of the draft distribution q at the W drafted positions."""

    @property
    def ratio(self) -> Tensor:
        """(W,), pi / q of the drafted token."""

    def excess(self, scale: Tensor) -> Tensor:
        """(W,), sum over v of max(scale pi_v - q_v, 0), for a scale (W,) in [0, 1]."""

    def residual(self, row: int, scale: float) -> tuple[Tensor, Tensor]:
        """Tokens (n,) and weights (n,) of max(scale pi - q, 0) at one position; pi itself where that is all zero."""


@dataclass(frozen=True)
class Verdict:
    """The outcome for one window.

    Attributes:
        accepted: how many leading drafts stand.
        correction: the token () that follows them; None if all stand, and the position after them is still open.
        chance: the acceptance probabilities min(1, pi/q) at the positions reached, accepted + 1 of them at most.
    """

    accepted: int
    correction: Tensor | None
    chance: Sequence[float]


Verifier = Callable[[Target, Randomness], Verdict]


def verify_tokens(target: Target, randomness: Randomness) -> Verdict:
    """Token by token: draft i stands with probability min(1, pi/q) if all before it stand [Spec]."""
    chance = target.ratio.clamp(max=1.0).tolist()
    accepted = randomness.leading(chance)
    return _verdict(target, randomness, chance, accepted, 1.0)


def verify_block(target: Target, randomness: Randomness) -> Verdict:
    """The window as a whole: as exact as `verify_tokens`, and accepts at least as many drafts in expectation [Block].

    With P_0 = 1 and P_i = min(1, P_{i-1} pi/q(d_i)), a coin of probability S_i / (S_i + 1 - P_i) is tossed for each
    prefix of i < W drafts, S_i = sum_v max(P_i pi_v - q_v, 0) at the position after it, and one of P_W for the whole
    window. The longest prefix whose coin succeeds stands; the residual after it is max(P_i pi - q, 0).
    """
    ratio = target.ratio
    joint = _joint(ratio.tolist())
    excess = target.excess(torch.tensor(joint[:-1], dtype=ratio.dtype, device=ratio.device)).tolist()
    coins = [_coin(excess[i], joint[i]) for i in range(1, len(joint) - 1)] + [joint[-1]]
    accepted = randomness.last(coins)
    return _verdict(target, randomness, ratio.clamp(max=1.0).tolist(), accepted, joint[accepted])


def verify_greedy(choice: Tensor, drafts: Tensor) -> Verdict:
    """Greedy decoding: drafts (W,) stand as long as they are pi's first choice (W,)."""
    matches = (choice == drafts).tolist()
    accepted = matches.index(False) if False in matches else len(matches)
    correction = choice[accepted] if accepted < len(matches) else None
    return Verdict(accepted, correction, [float(match) for match in matches[: accepted + 1]])


def _verdict(target: Target, randomness: Randomness, chance: Sequence[float], accepted: int, scale: float) -> Verdict:
    reached = chance[: accepted + 1]
    if accepted == len(chance):
        return Verdict(accepted, None, reached)
    tokens, weights = target.residual(accepted, scale)
    return Verdict(accepted, tokens[randomness.draw(weights)], reached)


def _joint(ratio: Sequence[float]) -> list[float]:
    """P_0..P_W, the clipped running product of the ratios."""
    joint = [1.0]
    for value in ratio:
        joint.append(min(1.0, joint[-1] * value))
    return joint


def _coin(excess: float, joint: float) -> float:
    """S / (S + 1 - P). 0/0 means that pi = q here, where any coin is exact because a longer prefix always stands."""
    missing = 1.0 - joint
    return 1.0 if excess + missing <= 0.0 else excess / (excess + missing)


def target_of(rule: ThresholdRule, base: Distribution, aligned: Distribution, drafts: Tensor) -> Target:
    """The target of a threshold rule drafting from q* itself: sparse, unless it keeps most of the vocabulary.

    Args:
        rule: the rule.
        base: rows (W, vocab) of p at the drafted positions.
        aligned: rows (W, vocab) of q*, from which the drafts were drawn.
        drafts: (W,), the drafted tokens.
    """
    if wide(base, rule.cutoff(base, aligned)):
        return DenseTarget(compose_distributions(rule, base, aligned), aligned.log_probs(), drafts)
    return SparseTarget(kept_tokens(rule, base, aligned), aligned.log_prob(drafts.unsqueeze(-1)), drafts)


def wide(base: Distribution, cutoff: Tensor) -> bool:
    """Whether the kept tokens are spread over so much of the rows that lists of them do not pay."""
    blocks = base.block_max >= cutoff.unsqueeze(-1)
    hit = int(blocks.sum())
    block_size = base.vocab_size // blocks.shape[-1]
    return hit * block_size > _MANY_TOKENS and hit > _LARGE_SHARE * blocks.numel()


class SparseTarget:
    """pi and q* where they matter to a threshold rule: at the kept and at the drafted tokens.

    pi_v = k_v p_v + alpha q*_v, so pi_v / q*_v = alpha + k_v p_v / q*_v, and for any scale s <= 1 the excess
    max(s pi_v - q*_v, 0) vanishes off the kept tokens, where s pi_v = s alpha q*_v <= q*_v.
    """

    def __init__(self, kept: Kept, log_aligned: Tensor, drafts: Tensor) -> None:
        self._row, self._token, self._alpha = kept.row, kept.token, kept.alpha
        self._p, self._q = kept.log_p.exp(), kept.log_aligned.exp()
        self._drafts, self._q_drafts = drafts, log_aligned.squeeze(-1).exp()

    @property
    def alpha(self) -> Tensor:
        """(W,), the deferred mass."""
        return self._alpha

    @cached_property
    def ratio(self) -> Tensor:
        """(W,), alpha + k p / q* at the drafted tokens."""
        hit = (self._token == self._drafts[self._row]).to(self._p.dtype)
        kept_p = torch.zeros_like(self._q_drafts).index_add_(0, self._row, self._p * hit)
        return self._alpha + kept_p / self._q_drafts

    def excess(self, scale: Tensor) -> Tensor:
        """(W,), see `Target`."""
        entries = self._entries(self._row, scale[self._row])
        return torch.zeros_like(self._q_drafts).index_add_(0, self._row, entries)

    def residual(self, row: int, scale: float) -> tuple[Tensor, Tensor]:
        """Tokens and weights, see `Target`."""
        here = self._row == row
        weights = self._entries(self._row, torch.full_like(self._p, scale)) * here
        # Rounding alone can reject where pi = q* up to the last bit; pi's own kept tokens are then as good a draw.
        return self._token, weights if bool(weights.any()) else self._p * here

    def _entries(self, row: Tensor, scale: Tensor) -> Tensor:
        return (scale * self._p - (1.0 - scale * self._alpha[row]) * self._q).clamp(min=0.0)


class DenseTarget:
    """pi and q as full rows, for any pi and any draft distribution."""

    def __init__(self, log_pi: Tensor, log_draft: Tensor, drafts: Tensor) -> None:
        self._log_pi, self._log_draft, self._drafts = log_pi, log_draft, drafts.unsqueeze(-1)

    @cached_property
    def ratio(self) -> Tensor:
        """(W,), pi / q at the drafted tokens."""
        difference = self._log_pi.gather(-1, self._drafts) - self._log_draft.gather(-1, self._drafts)
        return difference.squeeze(-1).exp()

    def excess(self, scale: Tensor) -> Tensor:
        """(W,), see `Target`."""
        return (scale.unsqueeze(-1) * self._log_pi.exp() - self._log_draft.exp()).clamp_(min=0.0).sum(dim=-1)

    def residual(self, row: int, scale: float) -> tuple[Tensor, Tensor]:
        """Tokens and weights, see `Target`."""
        pi = self._log_pi[row].exp()
        weights = (scale * pi - self._log_draft[row].exp()).clamp_(min=0.0)
        tokens = torch.arange(pi.shape[-1], device=pi.device)
        return tokens, weights if bool(weights.any()) else pi


def draw_kept(rule: ThresholdRule, base: Distribution, randomness: Randomness) -> Tensor | None:
    """The bonus position without q*: u ~ p; u () if it is kept, None if it is deferred and so q*'s to draw.

    Only for rules whose cutoff does not read q* (`rule.reads_aligned` is False). Drawn from the kept tokens and the
    deferred mass, not from all of p.

    Args:
        rule: the rule.
        base: one row, (1, vocab).
        randomness: where the draw comes from.
    """
    kept = kept_tokens(rule, base, base)
    index = randomness.draw(torch.cat([kept.log_p.exp(), kept.alpha]))
    return None if int(index) == kept.token.shape[0] else kept.token[index]


def draw_token(row: Distribution, randomness: Randomness) -> Tensor:
    """A token () drawn from one row (vocab,): first its block, then the token in it; no pass over the vocabulary."""
    blocks = row.block_log_z.shape[-1]
    block = randomness.draw((row.block_log_z - row.log_z).exp())
    inside = row.logits.reshape(blocks, -1)[block]
    return block * inside.shape[-1] + randomness.draw((inside - inside.amax()).exp())


def first_choice(
    rule: ThresholdRule, base: Distribution, aligned: Distribution, best: Tensor
) -> tuple[Tensor, Tensor | None]:
    """argmax pi of each row (W,), from the kept tokens and q*'s own first choice `best` (W,) alone.

    Off the kept tokens pi = alpha q*, so nothing there beats q*'s argmax. The arithmetic is that of
    `compose_distributions`, and ties go to the smallest token id as in torch.argmax, so the choice is the same as that
    of the dense log pi.

    Returns:
        The choice (W,), and the deferred mass alpha (W,), None where most of the vocabulary is kept.
    """
    cutoff = rule.cutoff(base, aligned)
    if wide(base, cutoff):
        return compose_distributions(rule, base, aligned).argmax(dim=-1), None
    row, token, log_alpha = base.split(cutoff)
    kept = torch.logaddexp(base.log_prob_at(row, token), aligned.log_prob_at(row, token) + log_alpha[row])
    # `best` may itself be kept: its second entry lacks p's part, is the smaller one, and never wins.
    deferred = aligned.log_prob(best.unsqueeze(-1)).squeeze(-1) + log_alpha
    rows = torch.cat([row, torch.arange(best.shape[0], device=best.device)])
    tokens, log_pi = torch.cat([token, best]), torch.cat([kept, deferred])
    top = torch.full_like(log_alpha, -torch.inf).scatter_reduce_(0, rows, log_pi, "amax")
    nothing = torch.iinfo(tokens.dtype).max
    tied = torch.where(log_pi == top[rows], tokens, nothing)
    return torch.full_like(best, nothing).scatter_reduce_(0, rows, tied, "amin"), log_alpha.exp()


def stack_rows(rows: Sequence[Distribution]) -> Distribution:
    """Single rows (vocab,) as one batch (rows, vocab)."""
    return Distribution(*(torch.stack([getattr(r, f.name) for r in rows]) for f in fields(Distribution)))

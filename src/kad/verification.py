"""Speculative verification: how many drafts stand, and which token follows them. Pure tensors, no look at a value.

A window of drafts d_1..d_W ~ q, each row given its prefix, is verified against pi so that what is emitted follows pi
exactly. Two verifiers, token by token [Spec] and as a block [Block]; one target, pi = kept + alpha q, which holds the
cascades that draft from q* (alpha: the deferred mass) and everything else (alpha = 0, kept = pi). Sources: [Spec]
Leviathan et al., ICML 2023; Chen et al. 2023. [Block] Sun et al., "Block Verification Accelerates Speculative
Decoding", ICLR 2025.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kad.composed import Few
from kad.distribution import precise, row_blocks


class Randomness(Protocol):
    """Every random decision of the loop, as tensors: a device is not waited for.

    The exact tests enumerate the outcomes instead of drawing them.
    """

    def leading(self, probabilities: Tensor) -> Tensor:
        """Toss one coin per probability (n,); the number () of successes before the first failure."""

    def last(self, probabilities: Tensor) -> Tensor:
        """Toss one coin per probability (n,); the (one-based) position () of the last success, 0 without any."""

    def draw(self, weights: Tensor) -> Tensor:
        """An index () drawn in proportion to `weights` (n,), which are >= 0 and not all zero."""


@dataclass(frozen=True, eq=False)
class Target:
    """pi and q in probabilities, at the W drafted positions and perhaps at the bonus position after them.

    pi_v = kept_v + alpha q_v, so pi_v / q_v = alpha + kept_v / q_v, and for a scale s in [0, 1] the excess
    max(s pi_v - q_v, 0) is max(s kept_v - (1 - s alpha) q_v, 0): it lives on kept tokens, and nothing cancels.

    Attributes:
        kept: (W, vocab) or (W + 1, vocab).
        alpha: (W,) or (W + 1,).
        draft: (W, vocab), q, from which the drafts were drawn.
        drafts: (W,), the drafted tokens; positions in `columns` where there are any.
        columns: (vocab + 1,), ids of the tokens that the rows speak of, where these are not the whole vocabulary; last
            the number that stands for none of them.
    """

    kept: Tensor
    alpha: Tensor
    draft: Tensor
    drafts: Tensor
    columns: Tensor | None = None

    def token(self, index: Tensor) -> Tensor:
        """The id () of a token by its index () in `follow`; the size of the vocabulary for the last of those."""
        return index if self.columns is None else self.columns.index_select(0, index.reshape(1)).squeeze(0)

    @property
    def ratio(self) -> Tensor:
        """(W,), pi / q of the drafted tokens."""
        window, token = self.drafts.shape[0], self.drafts.unsqueeze(-1)
        kept, draft = self.kept[:window].gather(-1, token), self.draft.gather(-1, token)
        return self.alpha[:window] + (kept / draft).squeeze(-1)

    def excess(self, scale: Tensor) -> Tensor:
        """(W - 1,), sum over v of max(s pi_v - q_v, 0) at every drafted position but the first, for scales (W - 1,)."""
        window = self.drafts.shape[0]
        kept, alpha, draft = self.kept[1:window], self.alpha[1:window], self.draft[1:]
        blocks = row_blocks(kept)
        return torch.cat([_excess(scale[b], kept[b], alpha[b], draft[b]).sum(dim=-1) for b in blocks])

    def follow(self, accepted: Tensor, scale: Tensor) -> Tensor:
        """(vocab + 1,), the weights of the token that follows the accepted drafts.

        After a rejection the residual max(s pi - q, 0) at that position. After a whole window p's kept tokens at the
        bonus position, where q is not known yet, and last of all the mass deferred there: that token is q's to draw.
        Without a bonus row all of the weight is there.

        Args:
            accepted: (1,), how many drafts stand.
            scale: (1,), s.
        """
        window, rows = self.drafts.shape[0], self.kept.shape[0]
        whole = (accepted == window).to(self.kept.dtype)
        row = accepted.clamp(max=rows - 1)
        kept, alpha = self.kept.index_select(0, row).squeeze(0), self.alpha.index_select(0, row)
        if window == 0:
            return torch.cat((kept, alpha))
        draft = self.draft.index_select(0, row.clamp(max=window - 1)).squeeze(0)
        weights = _excess(scale, kept, alpha, draft * (1.0 - whole))
        # Rounding alone can reject where pi = q up to the last bit; pi itself is then as good a draw.
        weights = torch.where(weights.sum(dim=-1, keepdim=True) > 0.0, weights, kept + alpha * draft * (1.0 - whole))
        return torch.cat((weights, whole * alpha) if rows > window else (weights * (1.0 - whole), whole))


def few_target(rows: Sequence[Few], draft: Sequence[Tensor], drafts: Tensor, vocab: int) -> Target:
    """The target of a threshold rule on the tokens that matter alone, the kept and the drafted ones.

    Args:
        rows: the kept tokens of p, for all positions in their order.
        draft: W rows (vocab,) of q.
        drafts: (W,), the drafted tokens.
        vocab: the number of tokens.
    """
    columns: Tensor = torch.unique(torch.cat([*(row.columns for row in rows), drafts]))
    kept = [row.log_p.new_zeros(row.log_p.shape[0], columns.shape[0]) for row in rows]
    for spread, row in zip(kept, rows, strict=True):
        spread[:, torch.searchsorted(columns, row.columns)] = row.keep * row.log_p.exp()
    q = torch.stack([weights[columns] for weights in draft]) if draft else kept[0][:0]
    alpha, numbered = torch.cat([row.alpha for row in rows]), torch.cat((columns, columns.new_full((1,), vocab)))
    return Target(torch.cat(kept), alpha, q, torch.searchsorted(columns, drafts), numbered)


# Given the target and a source of randomness: how many drafts stand, and the scale of the residual, both (1,).
Verifier = Callable[[Target, Randomness], tuple[Tensor, Tensor]]


def verify_tokens(target: Target, randomness: Randomness) -> tuple[Tensor, Tensor]:
    """Token by token: draft i stands with probability min(1, pi/q) if all before it stand [Spec]."""
    chance = target.ratio.clamp(max=1.0)
    return randomness.leading(chance).reshape(1), chance.new_ones(1)


def verify_block(target: Target, randomness: Randomness) -> tuple[Tensor, Tensor]:
    """The window as a whole: as exact as `verify_tokens`, and accepts at least as many drafts in expectation [Block].

    With P_0 = 1 and P_i = min(1, P_{i-1} pi/q(d_i)), a coin of probability S_i / (S_i + 1 - P_i) is tossed for each
    prefix of i < W drafts, S_i = sum_v max(P_i pi_v - q_v, 0) at the position after it, and one of P_W for the whole
    window. The longest prefix whose coin succeeds stands; the residual after it is max(P_i pi - q, 0).
    """
    joint = running_product(target.ratio)
    scale, missing = joint[:-1], 1.0 - joint[:-1]
    excess = target.excess(scale)
    # 0/0 means that pi = q here, where any coin is exact because a longer prefix always stands.
    coins = torch.where(excess + missing > 0.0, excess / (excess + missing), 1.0)
    accepted = randomness.last(torch.cat((coins, joint[-1:]))).reshape(1)
    return accepted, torch.cat((joint.new_ones(1), joint)).index_select(0, accepted)


def running_product(ratio: Tensor) -> Tensor:
    """(W,), P_i = min(1, P_{i-1} ratio_i) with P_0 = 1, without a loop.

    Its logarithm is a walk that a wall at 0 reflects: log P = S - max(0, running maximum of S), S the running sum of
    log ratio.
    """
    walk = ratio.to(precise(ratio.device)).log().cumsum(dim=-1)
    return (walk - walk.cummax(dim=-1).values.clamp(min=0.0)).exp().to(ratio.dtype)


def verify_greedy(choice: Tensor, drafts: Tensor) -> Tensor:
    """Greedy decoding: how many drafts (W,) stand, (1,), as long as they are pi's first choice (W,)."""
    return (choice == drafts).to(torch.long).cumprod(dim=-1).sum(dim=-1, keepdim=True)


def _excess(scale: Tensor, kept: Tensor, alpha: Tensor, draft: Tensor) -> Tensor:
    """max(s pi - q, 0) for pi = kept + alpha q; scale and alpha one a row."""
    scale, alpha = scale.unsqueeze(-1), alpha.unsqueeze(-1)
    if kept.ndim == 1:
        scale, alpha = scale.squeeze(-1), alpha.squeeze(-1)
    return torch.addcmul(scale * kept, scale * alpha - 1.0, draft).clamp_(min=0.0)

"""Speculative verification: how many drafts are accepted, and which token follows them. Pure tensors, no value is read.

A window of drafts d_1..d_W ~ q is verified against pi, so that the emitted tokens follow pi exactly. There are two
verifiers: token by token [Spec], and the window as a block [Block]. There is one form of the target, pi = kept + alpha
q. For cascades that draft from q*, alpha is the deferred mass. For everything else alpha = 0 and kept = pi. Sources:
[Spec] Leviathan et al., ICML 2023; Chen et al. 2023. [Block] Sun et al., "Block Verification Accelerates Speculative
Decoding", ICLR 2025.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kad.method.distribution import first_max, precise

# So much more than enough: far above what float32 rounds, so that no other way to compute pi finds another argmax.
_SURE = 1e-4


class Randomness(Protocol):
    """All random decisions of the loop, as tensors, so that the host does not wait for a device.

    The exact tests enumerate the outcomes instead of drawing them.
    """

    def leading(self, probabilities: Tensor) -> Tensor:
        """Toss a coin for each probability (n,). Returns the number () of successes before the first failure."""

    def last(self, probabilities: Tensor) -> Tensor:
        """Toss a coin for each probability (n,). Returns the one-based position () of the last success, or 0."""

    def draw(self, weights: Tensor) -> Tensor:
        """Draw an index () in proportion to `weights` (n,), which are >= 0 and not all zero."""


@dataclass(frozen=True, eq=False)
class Target:
    """pi and q in probabilities, at the W drafted positions and, if it is known, at the bonus position after them.

    pi_v = kept_v + alpha q_v, so pi_v / q_v = alpha + kept_v / q_v, and for a scale s in [0, 1] the excess
    max(s pi_v - q_v, 0) is max(s kept_v - (1 - s alpha) q_v, 0): it lives on kept tokens, and nothing cancels. So a few
    tokens are enough, in rising order: those that are kept, and the drafts. The columns are all tokens, or these.

    Attributes:
        kept: (W, columns) or (W + 1, columns).
        alpha: (W,) or (W + 1,).
        draft: (W, columns), q, from which the drafts were drawn.
        drafts: (W,), the columns of the drafted tokens.
        tokens: (columns,), the token of each column. None: all tokens.
    """

    kept: Tensor
    alpha: Tensor
    draft: Tensor
    drafts: Tensor
    tokens: Tensor | None = None

    @property
    def pi(self) -> Tensor:
        """pi at the drafted positions, (W, columns)."""
        window = self.drafts.shape[0]
        return torch.addcmul(self.kept[:window], self.alpha[:window].unsqueeze(-1), self.draft)

    @property
    def ratio(self) -> Tensor:
        """(W,), pi / q of the drafted tokens."""
        window, token = self.drafts.shape[0], self.drafts.unsqueeze(-1)
        kept, draft = self.kept[:window].gather(-1, token), self.draft.gather(-1, token)
        return self.alpha[:window] + (kept / draft).squeeze(-1)

    def first_of_p(self) -> Tensor:
        """(1,), the column of argmax pi at the bonus position if p alone settles it. Else the number of columns.

        pi_v - pi_u = (kept_v - kept_u) + alpha (q*_v - q*_u), and the last difference is at least -1. So the largest
        kept_v is first, whatever q* is, if it is larger than all others by more than alpha. The bound is sharp: a q*
        that gives all to the second one turns it.
        """
        kept, alpha = self.kept[-1:], self.alpha[-1:]
        first = first_max(kept)
        at = first.unsqueeze(-1)
        lead = kept.gather(-1, at).squeeze(-1) - kept.scatter(-1, at, 0.0).amax(dim=-1)
        return torch.where(lead > alpha + _SURE, first, kept.shape[-1])

    def excess(self, scale: Tensor) -> Tensor:
        """(W - 1,), sum over v of max(s pi_v - q_v, 0) at every drafted position but the first, for scales (W - 1,)."""
        window = self.drafts.shape[0]
        return _excess(scale, self.kept[1:window], self.alpha[1:window], self.draft[1:]).sum(dim=-1)

    def follow(self, accepted: Tensor, scale: Tensor) -> Tensor:
        """(columns + 1,), the weights of the token that follows the accepted drafts.

        After a rejection: the residual max(s pi - q, 0) at that position. After a window of accepted drafts: p's kept
        tokens at the bonus position, where q is not known yet, and as the last weight the mass deferred there, because
        q draws this token. Without a bonus row, the last weight is everything.

        Args:
            accepted: (1,), how many drafts are accepted.
            scale: (1,), s.
        """
        window, rows = self.drafts.shape[0], self.kept.shape[0]
        whole = (accepted == window).to(self.kept.dtype)
        row = accepted.clamp(max=rows - 1)
        kept, alpha = self.kept.index_select(0, row).squeeze(0), self.alpha.index_select(0, row)
        if window == 0:
            return torch.cat((kept, alpha))
        draft = self.draft.index_select(0, row.clamp(max=window - 1)).squeeze(0)
        # Nothing is left over of a whole window: the next token follows pi itself, whatever s.
        weights = _excess(torch.maximum(scale, whole), kept, alpha, draft * (1.0 - whole))
        # If pi = q up to the last bit, only rounding can reject. A draw from pi is then right as well.
        weights = torch.where(weights.sum(dim=-1, keepdim=True) > 0.0, weights, kept + alpha * draft * (1.0 - whole))
        return torch.cat((weights, whole * alpha) if rows > window else (weights * (1.0 - whole), whole))


# Given the target and a source of randomness: how many drafts are accepted, and the scale of the residual, both (1,).
Verifier = Callable[[Target, Randomness], tuple[Tensor, Tensor]]


def verify_tokens(target: Target, randomness: Randomness) -> tuple[Tensor, Tensor]:
    """Token by token: draft i is accepted with probability min(1, pi/q) if all drafts before it are accepted [Spec]."""
    chance = target.ratio.clamp(max=1.0)
    return randomness.leading(chance).reshape(1), chance.new_ones(1)


def verify_block(target: Target, randomness: Randomness) -> tuple[Tensor, Tensor]:
    """The window as a whole. It is exact too, and accepts at least as many drafts in expectation [Block].

    Let P_0 = 1 and P_i = min(1, P_{i-1} pi/q(d_i)), and S_i = sum_v max(P_i pi_v - q_v, 0) at the position after i
    drafts. Each prefix of i < W drafts gets a coin of probability S_i / (S_i + 1 - P_i). The whole window gets one of
    P_W. The longest prefix whose coin succeeds is accepted. The residual after it is max(P_i pi - q, 0).
    """
    joint = running_product(target.ratio)
    scale, missing = joint[:-1], 1.0 - joint[:-1]
    excess = target.excess(scale)
    # 0/0 means that pi = q here. Any coin is exact then, because a longer prefix is always accepted.
    coins = torch.where(excess + missing > 0.0, excess / (excess + missing), 1.0)
    accepted = randomness.last(torch.cat((coins, joint[-1:]))).reshape(1)
    return accepted, torch.cat((joint.new_ones(1), joint)).index_select(0, accepted)


def running_product(ratio: Tensor) -> Tensor:
    """(W,), P_i = min(1, P_{i-1} ratio_i) with P_0 = 1, without a loop.

    Its logarithm is a random walk with a reflecting wall at 0: log P = S - max(0, running maximum of S), where S is the
    running sum of log ratio.
    """
    walk = ratio.to(precise(ratio.device)).log().cumsum(dim=-1)
    return (walk - walk.cummax(dim=-1).values.clamp(min=0.0)).exp().to(ratio.dtype)


def verify_greedy(choice: Tensor, drafts: Tensor) -> Tensor:
    """Greedy decoding: how many drafts (W,) are accepted, (1,). They are as long as they equal pi's choice (W,)."""
    return (choice == drafts).to(torch.long).cumprod(dim=-1).sum(dim=-1, keepdim=True)


def _excess(scale: Tensor, kept: Tensor, alpha: Tensor, draft: Tensor) -> Tensor:
    """max(s pi - q, 0) for pi = kept + alpha q. Scale and alpha have one value for each row."""
    scale, alpha = scale.unsqueeze(-1), alpha.unsqueeze(-1)
    if kept.ndim == 1:
        scale, alpha = scale.squeeze(-1), alpha.squeeze(-1)
    return torch.addcmul(scale * kept, scale * alpha - 1.0, draft).clamp_(min=0.0)

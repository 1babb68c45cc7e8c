"""Rows of next-token distributions as logits and log-normalisers, and the cheap ways to find a row's head."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kad.errors import LogitsError

# Tokens are searched block by block: the maximum of a block is one vectorised reduction (on a CPU a tenth of a
# softmax), a comparison or top-k over all of V is not. So one reduction leaves only a few blocks to look into.
_BLOCK = 128


@dataclass(frozen=True)
class Distribution:
    """Next-token distributions as logits and their log-normalisers; probabilities are formed only where asked for.

    Attributes:
        logits: (..., vocab), float32 or float64; -inf marks a token of probability zero.
        log_z: (...,), logsumexp of `logits` over the vocabulary, so log p_v = logits_v - log_z.
    """

    logits: Tensor
    log_z: Tensor

    @classmethod
    def from_logits(cls, logits: Tensor, name: str = "logits") -> Distribution:
        """Normalise logits (or log-probabilities) of shape (..., vocab) and any float dtype.

        Half precision is raised to float32; float64 stays.

        Raises:
            LogitsError: not a float tensor, an empty vocabulary, NaN, +inf, or a row whose entries are all -inf.
        """
        if not logits.is_floating_point() or logits.ndim == 0 or logits.shape[-1] == 0:
            raise LogitsError(
                f"{name} must be a float tensor of shape (..., vocab), "
                f"but is {logits.dtype} of shape {tuple(logits.shape)}."
            )
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        # log_softmax is one fused kernel, logsumexp several passes; at the largest entry nothing cancels, so
        # log_z = logits_v - log p_v there is exact to the last bit or two. Row by row, no (rows, vocab) buffer stays.
        max_logit = logits.amax(dim=-1)
        log_z = max_logit - _log_max_prob(logits)
        # The normaliser is finite exactly where the row is a distribution: the check costs no pass over the row.
        if not bool(log_z.isfinite().all()):
            raise LogitsError(_describe_bad_row(logits, log_z, name))
        return cls(logits, log_z)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self.logits.shape[-1]

    @property
    def max_logit(self) -> Tensor:
        """(...,), the largest logit of each row."""
        return self.block_max.amax(dim=-1)

    @property
    def log_max(self) -> Tensor:
        """(...,), log of the largest probability of each row."""
        return self.max_logit - self.log_z

    @cached_property
    def block_max(self) -> Tensor:
        """(..., blocks), the largest logit among each `_BLOCK` consecutive tokens; the last block may be short."""
        whole = self.vocab_size // _BLOCK
        parts = []
        if whole:
            parts.append(self.logits[..., : whole * _BLOCK].unflatten(-1, (whole, _BLOCK)).amax(dim=-1))
        if whole * _BLOCK < self.vocab_size:
            parts.append(self.logits[..., whole * _BLOCK :].amax(dim=-1, keepdim=True))
        return torch.cat(parts, dim=-1)

    def log_probs(self) -> Tensor:
        """(..., vocab), the dense log-probabilities."""
        return self.logits - self.log_z.unsqueeze(-1)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Log-probabilities (..., n) of the given tokens (..., n)."""
        return self.logits.gather(-1, tokens) - self.log_z.unsqueeze(-1)

    def flat(self) -> Distribution:
        """The same rows as one batch: logits (rows, vocab), log_z (rows,)."""
        return Distribution(self.logits.reshape(-1, self.vocab_size), self.log_z.reshape(-1))

    def top(self, count: int) -> tuple[Tensor, Tensor]:
        """The `count` largest logits of each row in falling order and their tokens, both (..., count)."""
        blocks = self.block_max.shape[-1]
        if count >= blocks:
            return torch.topk(self.logits, min(count, self.vocab_size), dim=-1)
        # The `count` largest entries lie in the `count` blocks of largest maximum.
        block = torch.topk(self.block_max, count, dim=-1, sorted=False).indices
        tokens = _tokens_of(block).flatten(-2)
        inside = tokens < self.vocab_size
        logits = self.logits.gather(-1, tokens.clamp(max=self.vocab_size - 1))
        values, position = torch.topk(logits.masked_fill(~inside, -torch.inf), count, dim=-1)
        return values, tokens.gather(-1, position)

    def at_least(self, cutoff: Tensor) -> tuple[Tensor, Tensor]:
        """All tokens of positive probability whose logit reaches their row's cutoff.

        Args:
            cutoff: (...,), one logit per row; -inf asks for every token, +inf for none.

        Returns:
            (row, token), each (n,): row indices into the flattened rows, in rising order, and token ids.
        """
        logits, bound = self.logits.reshape(-1, self.vocab_size), cutoff.reshape(-1)
        block_max = self.block_max.reshape(logits.shape[0], -1)
        row, block = (block_max >= bound.unsqueeze(-1)).nonzero(as_tuple=True)
        tokens = _tokens_of(block)
        values = logits[row.unsqueeze(-1), tokens.clamp(max=self.vocab_size - 1)]
        found = (values >= bound[row].unsqueeze(-1)) & (values > -torch.inf) & (tokens < self.vocab_size)
        hit, column = found.nonzero(as_tuple=True)
        return row[hit], tokens[hit, column]


def _tokens_of(block: Tensor) -> Tensor:
    """Token ids (..., _BLOCK) of the given blocks (...,); ids past the vocabulary are for the caller to drop."""
    return block.unsqueeze(-1) * _BLOCK + torch.arange(_BLOCK, device=block.device)


def _log_max_prob(logits: Tensor) -> Tensor:
    """(...,), the largest log-probability of each row, one row's scratch at a time on the CPU."""
    if logits.device.type != "cpu" or logits.numel() == logits.shape[-1]:
        return torch.log_softmax(logits, dim=-1).amax(dim=-1)
    rows = logits.reshape(-1, logits.shape[-1])
    if rows.shape[0] == 0:
        return logits.new_zeros(logits.shape[:-1])
    return torch.log_softmax(rows, dim=-1).amax(dim=-1).reshape(logits.shape[:-1])


def _describe_bad_row(logits: Tensor, log_z: Tensor, name: str) -> str:
    """What is wrong with the first row whose normaliser is not finite."""
    rows = logits.reshape(-1, logits.shape[-1])
    index = int((~log_z.isfinite()).reshape(-1).nonzero()[0, 0])
    row = rows[index]
    if bool(row.isnan().any()):
        problem = f"NaN at token {int(row.isnan().nonzero()[0, 0])}"
    elif bool((row == torch.inf).any()):
        problem = f"+inf at token {int((row == torch.inf).nonzero()[0, 0])}"
    else:
        problem = "no finite entry: every token has probability zero"
    return (
        f"{name} of shape {tuple(logits.shape)}: row {index} has {problem}. "
        "Entries must be finite or -inf, with at least one finite in each row."
    )

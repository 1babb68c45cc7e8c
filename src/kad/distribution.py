"""Rows of next-token distributions as logits and log-normalisers, and the cheap ways to find a row's head."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from kad.errors import LogitsError

# The vocabulary is seen in blocks. A block's maximum and normaliser are one vectorised pass each; with them a row's
# head is found by looking into a few blocks (comparing or sorting all of V costs several softmaxes on a CPU), and the
# mass outside the head is known without cancellation.
_LARGEST_BLOCK, _SMALLEST_BLOCK = 256, 16
# Entries of scratch memory while normalising: a few rows at a time, however many there are.
_SCRATCH = 1 << 19


@dataclass(frozen=True)
class Distribution:
    """Next-token distributions as logits and their log-normalisers; probabilities are formed only where asked for.

    Attributes:
        logits: (..., vocab), float32 or float64; -inf marks a token of probability zero.
        log_z: (...,), logsumexp of `logits` over the vocabulary, so log p_v = logits_v - log_z.
        block_max: (..., blocks), the largest logit of each block of consecutive tokens.
        block_log_z: (..., blocks), logsumexp of the logits of each block.
    """

    logits: Tensor
    log_z: Tensor
    block_max: Tensor
    block_log_z: Tensor

    @classmethod
    def from_logits(cls, logits: Tensor, name: str = "logits") -> Distribution:
        """Normalise logits (or log-probabilities) of shape (..., vocab) and any float dtype.

        Half precision is raised to float32; float64 stays.

        Raises:
            LogitsError: not a float tensor, an empty vocabulary, NaN, +inf, or a row whose entries are all -inf.
        """
        logits = raised(logits, name)
        block_max, block_log_z = _normalise_blocks(logits)
        log_z = block_log_z.logsumexp(dim=-1)
        # The normaliser is finite exactly where the row is a distribution: the check costs no pass over the row.
        if not bool(log_z.isfinite().all()):
            raise LogitsError(_describe_bad_row(logits, ~log_z.isfinite(), name))
        return cls(logits, log_z, block_max, block_log_z)

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

    def log_probs(self) -> Tensor:
        """(..., vocab), the dense log-probabilities."""
        return self.logits - self.log_z.unsqueeze(-1)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Log-probabilities (..., n) of the given tokens (..., n)."""
        return self.logits.gather(-1, tokens) - self.log_z.unsqueeze(-1)

    def log_prob_at(self, row: Tensor, token: Tensor) -> Tensor:
        """Log-probabilities (n,) of entries of flattened rows, given like those that `split` finds."""
        rows = self.flat()
        return rows.logits[row, token] - rows.log_z[row]

    def flat(self) -> Distribution:
        """The same rows as one batch: logits (rows, vocab), log_z (rows,)."""
        return Distribution(
            self.logits.reshape(-1, self.vocab_size),
            self.log_z.reshape(-1),
            self.block_max.reshape(-1, self.block_max.shape[-1]),
            self.block_log_z.reshape(-1, self.block_log_z.shape[-1]),
        )

    def top(self, count: int) -> tuple[Tensor, Tensor]:
        """The `count` largest logits of each row in falling order and their tokens, both (..., count)."""
        blocks = self.block_max.shape[-1]
        if count >= blocks:
            return torch.topk(self.logits, min(count, self.vocab_size), dim=-1)
        # The `count` largest entries lie in the `count` blocks of largest maximum.
        rows = self.flat()
        block = torch.topk(rows.block_max, count, dim=-1, sorted=False).indices
        row = torch.arange(block.shape[0], device=block.device).unsqueeze(-1).expand_as(block)
        tokens, logits = (x.reshape(block.shape[0], -1) for x in rows._blocks(row.reshape(-1), block.reshape(-1)))
        values, position = torch.topk(logits, count, dim=-1)
        shape = (*self.log_z.shape, count)
        return values.reshape(shape), tokens.gather(-1, position).reshape(shape)

    def split(self, cutoff: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All tokens of positive probability whose logit reaches their row's cutoff, and the mass of all others.

        Args:
            cutoff: (...,), one logit per row; -inf asks for every token, +inf for none.

        Returns:
            (row, token, log_mass_outside): row indices into the flattened rows, in rising order, and token ids, both
            (n,); the log of the probability of the other tokens, (rows,), to full relative precision, -inf if none is.
        """
        rows, bound = self.flat(), cutoff.reshape(-1)
        row, block = (rows.block_max >= bound.unsqueeze(-1)).nonzero(as_tuple=True)
        tokens, values = rows._blocks(row, block)
        found = (values >= bound[row].unsqueeze(-1)) & (values > -torch.inf)
        hit, column = found.nonzero(as_tuple=True)
        # Only the blocks looked into have lost anything.
        remaining = rows.block_log_z.index_put((row, block), values.masked_fill_(found, -torch.inf).logsumexp(dim=-1))
        return row[hit], tokens[hit, column], remaining.logsumexp(dim=-1) - rows.log_z

    @property
    def _block_size(self) -> int:
        return self.vocab_size // self.block_max.shape[-1]

    def _blocks(self, row: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and logits, both (n, block size), of n blocks of flattened rows."""
        tokens = block.unsqueeze(-1) * self._block_size + torch.arange(self._block_size, device=block.device)
        return tokens, self.logits[row.unsqueeze(-1), tokens]


def log_probabilities(logits: Tensor, name: str = "logits") -> Tensor:
    """The dense log-probabilities (..., vocab) where nothing else is wanted: one pass; errors as `from_logits`."""
    logits = raised(logits, name)
    log_probs = torch.log_softmax(logits, dim=-1)
    # A row that is no distribution is NaN throughout.
    bad = log_probs[..., 0].isnan()
    if bool(bad.any()):
        raise LogitsError(_describe_bad_row(logits, bad, name))
    return log_probs


def raised(logits: Tensor, name: str = "logits") -> Tensor:
    """Logits (..., vocab) in single precision at least; LogitsError where they are no float tensor with tokens."""
    if not logits.is_floating_point() or logits.ndim == 0 or logits.shape[-1] == 0:
        raise LogitsError(
            f"{name} must be a float tensor of shape (..., vocab), "
            f"but is {logits.dtype} of shape {tuple(logits.shape)}."
        )
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@cache
def _block_size_of(vocab: int) -> int:
    """The largest divisor of the vocabulary that makes good blocks, else the whole row as one block."""
    sizes = range(min(_LARGEST_BLOCK, vocab), _SMALLEST_BLOCK - 1, -1)
    return next((size for size in sizes if vocab % size == 0), vocab)


def _normalise_blocks(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum and logsumexp of each block, both (..., blocks), with little scratch memory.

    `log_softmax` is one fused kernel where `logsumexp` makes several passes; at the largest entry nothing cancels, so
    log_z = max logit - max log p.
    """
    size = _block_size_of(logits.shape[-1])
    blocks = logits.reshape(*logits.shape[:-1], logits.shape[-1] // size, size)
    block_max = blocks.amax(dim=-1)
    some = torch.split(blocks.reshape(-1, size), max(1, _SCRATCH // size))
    log_p_max = torch.cat([torch.log_softmax(part, dim=-1).amax(dim=-1) for part in some]).reshape(block_max.shape)
    return block_max, (block_max - log_p_max).masked_fill_(block_max == -torch.inf, -torch.inf)


def _describe_bad_row(logits: Tensor, bad: Tensor, name: str) -> str:
    """What is wrong with the first of the bad rows (...,)."""
    rows = logits.reshape(-1, logits.shape[-1])
    index = int(bad.reshape(-1).nonzero()[0, 0])
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

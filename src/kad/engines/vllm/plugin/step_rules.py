"""Which rule composes which row of a step: decided by the request, carried with the hidden states.

vLLM hands `compute_logits` rows picked out of the step's hidden states: the last token of each request, all drafted
positions under speculation, prompt positions when prompt log-probabilities are asked for. So the number of its rule
travels with every token, as two extra columns of the hidden states, and no picking can separate a row from its rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kad.method.rules import RowRules, Rule

if TYPE_CHECKING:
    from kad.engines.vllm.plugin.metrics import DeferredMass

# A column holds a whole number below 256, which every float type down to bfloat16 represents exactly.
_BASE = 256
RULE_COLUMNS = 2

# Log pi by a rule, and the log of the deferred mass if it is asked for.
Compose = Callable[[Rule, bool], tuple[Tensor, Tensor | None]]


class StepRules:
    """The rules of the current step, and the columns that say which token goes by which.

    Args:
        default: the pair's own rule, for requests that name none and for dummy runs.
        max_tokens: the most tokens a step can have.
        dtype: the dtype of the hidden states.
        device: their device.
        deferred_mass: where the deferred mass of each rule is counted, if anywhere.
    """

    def __init__(
        self,
        default: Rule,
        max_tokens: int,
        dtype: torch.dtype,
        device: torch.device | str,
        deferred_mass: DeferredMass | None = None,
    ) -> None:
        self.default = default
        self._deferred_mass, self._counts = deferred_mass, False
        self._rules: list[Rule] = [default]
        self._table: RowRules | None = None
        # One buffer for the life of the engine: captured graphs read it at a fixed address.
        self._columns = torch.zeros(max_tokens, RULE_COLUMNS, dtype=dtype, device=device)

    def assign(self, rules: Sequence[Rule], token_counts: Sequence[int], *, dummy: bool = False) -> None:
        """Set the rule of each request of the coming step.

        Args:
            rules: one rule per request, in the order of the batch.
            token_counts: how many tokens of each request the step holds.
            dummy: whether the step answers nobody. Then nothing is counted.
        """
        self._counts = not dummy
        numbers: dict[Rule, int] = {}
        per_request = torch.tensor([numbers.setdefault(rule, len(numbers)) for rule in rules])
        self._rules = list(numbers)
        if len(numbers) > 1:
            self._table = _table(self._rules, self._columns.device)
            per_token = per_request.repeat_interleave(torch.tensor(token_counts))
            digits = torch.stack((per_token // _BASE, per_token % _BASE), dim=-1).to(self._columns.dtype)
            if self._columns.is_cuda:
                # A copy from pageable memory would wait for the device.
                digits = digits.pin_memory()
            self._columns[: len(per_token)].copy_(digits, non_blocking=True)

    def columns(self, count: int) -> Tensor:
        """(count, 2), the columns to put beside the hidden states of the step's first `count` tokens."""
        return self._columns[:count]

    def log_pi(self, columns: Tensor, compose: Compose) -> Tensor:
        """Each row composed by its own rule, without a look at the device: the rules of a step are known on the host.

        Args:
            columns: (rows, 2), as cut off the hidden states again; anything if the whole step goes by one rule.
            compose: given a rule and whether the deferred mass is counted, log pi of all these rows, (rows, vocab),
                and the log of their deferred mass, (rows, 1). None: a product, or it is not counted.
        """
        counter = self._deferred_mass if self._counts else None
        if counter is not None and not counter.is_due():
            counter = None
        counts = counter is not None
        if len(self._rules) == 1:
            rows, masses = compose(self._rules[0], counts)
            if counter is not None and masses is not None:
                counter.add(self._rules, torch.zeros_like(columns[:, 0], dtype=torch.long), masses)
            return rows
        numbers = (columns[:, 0].long() * _BASE + columns[:, 1].long()).clamp(0, len(self._rules) - 1)
        # Threshold rules are numbers in a table, and go in one pass. Each of the others makes a pass of its own.
        apart = [number for number, rule in enumerate(self._rules) if not RowRules.takes(rule)]
        log_pi: Tensor | None = None
        log_alpha: Tensor | None = None
        if self._table is not None:
            log_pi, log_alpha = compose(self._table[numbers], counts)
        for number in apart:
            rows, masses = compose(self._rules[number], counts)
            mine = (numbers == number).unsqueeze(-1)
            log_pi = rows if log_pi is None else torch.where(mine, rows, log_pi)
            if counts:
                masses = torch.full_like(rows[:, :1], torch.nan) if masses is None else masses
                log_alpha = masses if log_alpha is None else torch.where(mine, masses, log_alpha)
        assert log_pi is not None
        if counter is not None and log_alpha is not None:
            counter.add(self._rules, numbers, log_alpha)
        return log_pi


def _table(rules: Sequence[Rule], device: torch.device) -> RowRules | None:
    """Threshold rules by number, on the device; None if there is none. Others have one of these in their place."""
    shared = [rule for rule in rules if RowRules.takes(rule)]
    return RowRules.of([rule if RowRules.takes(rule) else shared[0] for rule in rules], device) if shared else None


def bad_tokens(bad: Tensor, rows: Sequence[int], counts: Tensor) -> Tensor:
    """How many of each request's new tokens are none of pi: its first one drawn from a bad row, and those after it.

    Nothing is drawn from the rows after a rejected draft, so they may be as bad as they like.

    Args:
        bad: (rows,), whether a row is no distribution (NaN); the rows of one request after the other.
        rows: how many of these rows each request has.
        counts: (requests,), how many new tokens each request got, one from each of its first rows.

    Returns:
        (requests,), int32; 0 where all is well.
    """
    table = pad_sequence(list(torch.split(bad, list(rows))), batch_first=True)
    place = torch.arange(table.shape[1], device=bad.device)
    first = torch.where(table, place, table.shape[1]).amin(dim=-1)
    return (counts - first).clamp(min=0).int()

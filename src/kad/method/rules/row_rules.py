"""A rule for each row. A batch in which every row has its own threshold rule costs as many launches as one rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kad.errors import RuleError
from kad.method.rules.rule import Rule, ThresholdRule
from kad.method.rules.threshold import Anchor, NumberRule, Numbers, all_or_nothing, critical_logit, log_shifted

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kad.method.distribution import Distribution


@dataclass(frozen=True, eq=False)
class RowRules(ThresholdRule):
    """A threshold rule for each row. It is itself a rule, and works wherever a rule does.

    Build it from rules with `of`, and take rows of it with `[...]`. The host knows which parts of the closed form the
    rules use, so only these parts are computed.

    Attributes:
        numbers: (rows, 5) float64 (float32 if the device has no float64), the `Numbers` of each row.
        used: the parts of the closed form that the rules use.
    """

    name: ClassVar[str] = "row_rules"
    numbers: Tensor
    used: frozenset[str]

    def __post_init__(self) -> None:
        """Holds tensors, not parameters to check."""

    def __str__(self) -> str:
        return f"a rule for each of {len(self.numbers)} rows"

    @staticmethod
    def takes(rule: Rule) -> bool:
        """Whether `rule` can share a batch. kad's threshold rules can. Products and rules of users cannot."""
        return isinstance(rule, NumberRule)

    @classmethod
    def of(cls, rules: Sequence[Rule], device: torch.device | str | None = None) -> RowRules:
        """The table of `rules`, one for each row, on `device`.

        Raises:
            RuleError: a rule that cannot share a batch, see `takes`.
        """
        import torch

        rows = []
        for rule in rules:
            if not isinstance(rule, NumberRule):
                raise RuleError(f"Rule {rule} is no threshold rule in numbers: compose its rows by themselves.")
            rows.append(rule.numbers)
        table = torch.tensor(
            rows, dtype=torch.float32 if torch.device(device or "cpu").type == "mps" else torch.float64
        )
        if device is not None and torch.device(device).type == "cuda":
            table = table.pin_memory()
        return cls(table.to(device or "cpu", non_blocking=True).reshape(-1, len(Numbers._fields)), _used(rows))

    @property
    def reads_aligned(self) -> bool:  # type: ignore[override]
        """Whether the cutoff of any row reads q*."""
        return "aligned" in self.used

    def __getitem__(self, rows: Tensor | slice) -> RowRules:
        """The rules of some rows: a slice, or a tensor of row numbers on the table's device, of any shape."""
        return RowRules(self.numbers[rows], self.used)

    def cutoff(self, base: Distribution, aligned: Distribution) -> Tensor:
        """See `ThresholdRule.cutoff`. There must be as many rules as `base` has rows."""
        import torch

        anchor, shift, offset, whole, budget = self.numbers.to(base.logits.dtype).unbind(dim=-1)
        cutoff, log_anchor = base.log_z, torch.zeros_like(shift)
        if "base" in self.used:
            cutoff = torch.where(anchor == Anchor.BASE, base.max_logit, cutoff)
            log_anchor = torch.where(anchor == Anchor.BASE, base.log_max, log_anchor)
        if "aligned" in self.used:
            cutoff = torch.where(anchor == Anchor.ALIGNED, base.log_z + aligned.log_max, cutoff)
            log_anchor = torch.where(anchor == Anchor.ALIGNED, aligned.log_max, log_anchor)
        if "shift" in self.used:
            cutoff = cutoff + log_shifted(log_anchor, shift)
        cutoff = cutoff + offset
        if "budget" in self.used:
            cutoff = torch.where(budget >= 0.0, critical_logit(base, budget), cutoff)
        if "whole" in self.used:
            cutoff = torch.where(whole > 0.0, all_or_nothing(base, cutoff), cutoff)
        return cutoff


def _used(rows: Sequence[Numbers]) -> frozenset[str]:
    parts = {
        "base": any(row.anchor == Anchor.BASE for row in rows),
        "aligned": any(row.anchor == Anchor.ALIGNED for row in rows),
        "shift": any(row.shift != 0.0 for row in rows),
        "budget": any(row.budget >= 0.0 for row in rows),
        "whole": any(row.whole for row in rows),
    }
    return frozenset(part for part, present in parts.items() if present)

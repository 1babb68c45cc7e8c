"""The deferred mass of each rule, for Prometheus.

Only the worker's process knows it. Prometheus' client library shares counters between processes through the files of
one folder, which `PROMETHEUS_MULTIPROC_DIR` names. vLLM's `/metrics` reads them. `kad serve` sets it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kad.method.rules import Rule

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
# Clients may send any number of rules, and each label costs memory for ever. Further rules share the last one.
MOST_RULES = 64
OTHERS = "others"
STEPS_ON_GPU = 16


class DeferredMass:
    """Sums of the deferred mass by rule. They are kept on the device, and read there without waiting for it.

    Args:
        device: where the rows are.
    """

    def __init__(self, device: torch.device | str) -> None:
        from prometheus_client import Counter

        self._mass = Counter("kad:deferred_mass", "Deferred mass alpha, summed over composed rows.", ["rule"])
        self._rows = Counter("kad:composed_rows", "Rows of logits composed by a cascade.", ["rule"])
        self._places: dict[Rule, int] = {}
        # float32 would stop counting at 2^24 rows.
        self._sums = torch.zeros(MOST_RULES + 1, 2, dtype=torch.float64, device=device)
        self._shown = [(0.0, 0.0)] * (MOST_RULES + 1)
        self._copy = torch.zeros_like(self._sums, device="cpu", pin_memory=self._sums.is_cuda)
        self._steps = 0
        self._copied: Any = None

    @classmethod
    def if_wanted(cls, device: torch.device | str) -> DeferredMass | None:
        """None where no folder for counters is named: nobody could read them."""
        return cls(device) if os.environ.get(FOLDER) else None

    def is_due(self) -> bool:
        """Whether the coming rows are to be counted. On a GPU one step in 16: the others use the fused kernel."""
        self._steps += 1
        return not self._sums.is_cuda or self._steps % STEPS_ON_GPU == 0

    def add(self, rules: Sequence[Rule], numbers: Tensor, log_alpha: Tensor) -> None:
        """Count rows. NaN rows are left out.

        Args:
            rules: the rules of the step.
            numbers: (rows,), which of them each row goes by.
            log_alpha: (rows, 1), the log of the deferred mass.
        """
        places = torch.tensor([self._place(rule) for rule in rules])
        alpha = log_alpha.squeeze(-1).double().exp()
        good = ~alpha.isnan()
        rows = torch.stack((alpha.nan_to_num(), good.double()), dim=-1)
        if self._sums.is_cuda:
            places = places.pin_memory().to(self._sums.device, non_blocking=True)
        self._sums.index_add_(0, places[numbers], rows)
        self._publish()

    def _place(self, rule: Rule) -> int:
        if rule not in self._places and len(self._places) < MOST_RULES:
            self._places[rule] = len(self._places)
        return self._places.get(rule, MOST_RULES)

    def _publish(self) -> None:
        """Hand the sums to Prometheus. From a GPU, those of an earlier step, so that nobody waits."""
        if not self._sums.is_cuda:
            self._show(self._sums)
        elif self._copied is None or self._copied.query():
            if self._copied is not None:
                self._show(self._copy)
            self._copy.copy_(self._sums, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def _show(self, sums: Tensor) -> None:
        totals = sums.tolist()
        for name, place in [*((str(rule), place) for rule, place in self._places.items()), (OTHERS, MOST_RULES)]:
            mass, rows = totals[place]
            before = self._shown[place]
            if rows > before[1]:
                self._mass.labels(name).inc(mass - before[0])
                self._rows.labels(name).inc(rows - before[1])
                self._shown[place] = (mass, rows)

"""Whether rows of an earlier forward pass were bad, found out without waiting for the device."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kad.method.distribution import may_look

# The words for a bad row need its logits. A pass with more entries is not checked.
_LARGEST = 1 << 24


class LateCheck(threading.local):
    """Carries one flag from the device to the host, and raises when it has arrived. Each thread has its own.

    On a CPU nothing is carried: `kad.compose` has looked.
    """

    def __init__(self) -> None:
        self.drop()

    def __reduce__(self) -> tuple[type[LateCheck], tuple[()]]:
        return LateCheck, ()

    def drop(self) -> None:
        """Forget what was sent."""
        self._flag: Tensor | None = None
        self._arrived: Any = None  # a torch.cuda.Event
        self._explain: Callable[[], object] = lambda: None

    def send(self, log_pi: Tensor, explain: Callable[[], object]) -> None:
        """Ask whether a row of log_pi (..., vocab) is NaN. It starts a copy, and does not wait for it.

        Args:
            log_pi: what was composed.
            explain: raises the error in words. It is called if a row is NaN.
        """
        if may_look(log_pi) or torch.compiler.is_compiling() or log_pi.numel() > _LARGEST:
            return
        self.raise_if_bad()
        bad = log_pi[..., :1].isnan().any()
        self._flag = torch.empty((), dtype=torch.bool, pin_memory=bad.is_cuda).copy_(bad, non_blocking=True)
        self._explain = explain
        if bad.is_cuda:
            event: Any = torch.cuda.Event
            self._arrived = event()
            self._arrived.record()

    def raise_if_bad(self, *, wait: bool = False) -> None:
        """Raise the error of the last rows that were sent, if they were bad and this is known by now.

        Args:
            wait: wait until it is known. For places where the host waits for the device anyway.
        """
        if self._flag is None or not (wait or self._arrived is None or self._arrived.query()):
            return
        if self._arrived is not None:
            self._arrived.synchronize()
        bad, explain = bool(self._flag), self._explain
        self.drop()
        if bad:
            explain()

"""A cascade that no package has: it reads q* token by token, and has no threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

import oracle
from kad.rules import CascadeRule


@dataclass(frozen=True)
class Wanted(CascadeRule):
    """Keep v iff q*_v >= max p + margin."""

    name: ClassVar[str] = "wanted"
    summary: ClassVar[str] = "keep what q* wants more than p wants anything"
    source: ClassVar[str] = "max_p_plus in Kad's published code"
    margin: float = 0.0

    def keep(self, log_p: Tensor, log_aligned: Tensor) -> Tensor:
        return (log_aligned.exp() >= log_p.amax(dim=-1, keepdim=True).exp() + self.margin).to(log_p.dtype)


oracle.KEEP["wanted"] = oracle.keep_wanted

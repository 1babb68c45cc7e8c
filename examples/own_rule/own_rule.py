"""A rule of one's own: keep the base model where it is sure, by the entropy of its distribution."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from kad.rules import CascadeRule


@dataclass(frozen=True)
class Entropic(CascadeRule):
    """Keep p whole where its entropy is below `bound` (in nats), else defer to the aligned model."""

    name: ClassVar[str] = "entropic"
    summary: ClassVar[str] = "use p where its entropy is below bound, else q*"
    source: ClassVar[str] = "an example of kad's documentation"
    bound: float = field(default=0.7, metadata={"range": (0.0, math.inf)})

    def keep(self, log_p: Tensor, log_aligned: Tensor) -> Tensor:
        entropy = -(log_p.exp() * log_p).nan_to_num(0.0).sum(dim=-1, keepdim=True)  # 0 log 0 = 0
        return (entropy < self.bound).to(log_p.dtype).expand_as(log_p)

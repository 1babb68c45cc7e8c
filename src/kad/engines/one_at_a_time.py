"""What engines share that take one prompt at a time and capture nothing: llama.cpp and MLX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from kad.errors import OptionError

if TYPE_CHECKING:
    from kad.method.scorer import Scorer


class OneAtATime:
    """A part of `kad.engines.protocols.Model`, on the CPU."""

    device = torch.device("cpu")

    def captured(self, *args: Any, **kwargs: Any) -> Scorer:
        """See `kad.engines.protocols.Model`."""
        raise OptionError("Only models that Transformers runs can be compiled. Leave `compile` out.")

    def in_step(self, *args: Any, **kwargs: Any) -> None:
        """See `kad.engines.protocols.Model`."""

"""Speculative decoding of the composed model: q* drafts a window, the base model verifies it in one forward pass.

`speculative` is a Transformers `custom_generate` callable. The output follows pi exactly, whatever was drafted. Names
are imported on first use, so that importing a light module of this package stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kad.speculation.generate import SpeculativeOutput, speculative
    from kad.speculation.statistics import SpeculationStatistics

__all__ = ["SpeculationStatistics", "SpeculativeOutput", "speculative"]

_MODULES = {
    "SpeculationStatistics": "kad.speculation.statistics",
    "SpeculativeOutput": "kad.speculation.generate",
    "speculative": "kad.speculation.generate",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'kad.speculation' has no attribute {name!r}")

"""Speculative decoding of the composed model: q* drafts a window, the base model verifies it in one forward.

`speculative` is a Transformers `custom_generate` callable. The output follows pi exactly, whatever the draft.
"""

from kad.speculation.generate import SpeculativeOutput, speculative
from kad.speculation.statistics import SpeculationStatistics

__all__ = ["SpeculationStatistics", "SpeculativeOutput", "speculative"]

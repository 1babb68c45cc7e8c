"""The published model pairs and settings by name.

Source: the configuration that the Kad paper's authors published (EACL 2026). Parameter counts are those of the stored
weights; sizes follow from them.
"""

from __future__ import annotations

from dataclasses import dataclass

from kad.errors import UsageError
from kad.method.defaults import PUBLISHED_DRAFT_TOKENS


@dataclass(frozen=True)
class PublishedModel:
    """A hub model and its number of parameters."""

    model: str
    parameters: float

    def gigabytes(self) -> float:
        """The size of its weights in bfloat16."""
        return self.parameters * 2 / 1e9


@dataclass(frozen=True)
class Preset:
    """One published experiment: a pair, its reference model and upper bound, and how they were decoded."""

    name: str
    base: PublishedModel
    aligned: PublishedModel
    reference: PublishedModel
    oracle: PublishedModel
    dtype: str = "bfloat16"
    temperature: float = 1.0
    max_new_tokens: int = 1024
    num_draft_tokens: int = PUBLISHED_DRAFT_TOKENS

    @property
    def methods(self) -> tuple[str, ...]:
        """Every method of the papers' tables; the rules are decoded speculatively, as published."""
        window = f"@speculative:num_draft_tokens={self.num_draft_tokens}"
        cascades = (f"{rule}{window}" for rule in ("nudging:threshold=0.4", "dual:threshold=0.4", "primal:budget=0.9"))
        products = (f"implicit_reward{window},draft={role}" for role in ("reference", "aligned"))
        return "base", "aligned", f"oracle={self.oracle.model}", *cascades, "implicit_reward", *products

    @property
    def models(self) -> tuple[PublishedModel, ...]:
        """All that is downloaded, the largest first."""
        return self.oracle, self.base, self.aligned, self.reference

    @property
    def memory(self) -> float:
        """The most gigabytes of weights at one time: the pair with its reference, or the oracle before them."""
        together = sum(model.gigabytes() for model in (self.base, self.aligned, self.reference))
        return max(together, self.oracle.gigabytes())


_OLMO2 = Preset(
    name="olmo2",
    base=PublishedModel("allenai/OLMo-2-1124-13B", 13.7e9),
    aligned=PublishedModel("allenai/OLMo-2-0425-1B-Instruct", 1.48e9),
    reference=PublishedModel("allenai/OLMo-2-0425-1B", 1.48e9),
    oracle=PublishedModel("allenai/OLMo-2-1124-13B-Instruct", 13.7e9),
)
_QWEN3 = Preset(
    name="qwen3",
    base=PublishedModel("Qwen/Qwen3-14B-Base", 14.8e9),
    aligned=PublishedModel("Qwen/Qwen3-1.7B", 2.03e9),
    reference=PublishedModel("Qwen/Qwen3-1.7B-Base", 2.03e9),
    oracle=PublishedModel("Qwen/Qwen3-14B", 14.8e9),
)
PRESETS = {preset.name: preset for preset in (_OLMO2, _QWEN3)}


def preset(name: str) -> Preset:
    """A published experiment by its name."""
    if name not in PRESETS:
        raise UsageError(f"Unknown preset {name!r}. Choose from: {', '.join(PRESETS)}.")
    return PRESETS[name]

"""Sizes, steps and learning rates: everything that was chosen, in one place. Chosen on the development split only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

BUILD = Path(__file__).parent / "build"
VOCABULARY = 768
WINDOW = 256  # tokens per training row
MAX_POSITIONS = 2048
ALIGNMENT_EXAMPLES = 2000


@dataclass(frozen=True)
class Size:
    """The shape of a Llama model. Heads are even in number, so that two ranks can share them."""

    hidden: int
    layers: int
    heads: int
    mlp: int
    head_dim: int = 32  # a head size that vLLM's CPU backend has


@dataclass(frozen=True)
class Schedule:
    """Learning rates for Muon (matrices) and AdamW (the rest): warm-up, constant, linear decay to 2 %."""

    steps: int
    rows: int
    muon: float
    adamw: float
    warmup: int = 50
    decay: float = 0.4  # share of the steps

    def factor(self, step: int) -> float:
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return min(1.0, (step + 1) / self.warmup, max(0.02, left))


@dataclass(frozen=True)
class Recipe:
    size: Size
    pretraining: Schedule
    alignment: Schedule


BIG = Recipe(
    Size(hidden=192, layers=4, heads=6, mlp=512),
    Schedule(steps=3000, rows=16, muon=0.012, adamw=0.004, decay=0.36),
    Schedule(steps=500, rows=16, muon=0.002, adamw=0.001, decay=1.0),
)
SMALL = Recipe(
    Size(hidden=64, layers=3, heads=4, mlp=192),
    Schedule(steps=1200, rows=16, muon=0.012, adamw=0.004),
    Schedule(steps=300, rows=16, muon=0.003, adamw=0.001, decay=1.0),
)
RECIPES = {"big": BIG, "small": SMALL}
SEEDS = {"big": (0, 1), "small": (0, 1, 2)}
"""The training seeds of the table. Seed 0 is the one in the package, as was fixed before training."""


def quick(recipe: Recipe) -> Recipe:
    """A run of a minute: the losses fall and the files load, nothing more is claimed."""
    pretraining = replace(recipe.pretraining, steps=30, warmup=5)
    size = replace(recipe.size, layers=2, hidden=recipe.size.hidden // 2, mlp=recipe.size.mlp // 2)
    return Recipe(size, pretraining, replace(recipe.alignment, steps=10, warmup=2))

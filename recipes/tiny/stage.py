"""A training stage as a program: `python -m recipes.tiny.pretrain`, `python -m recipes.tiny.finetune`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from recipes.tiny import parallel
from recipes.tiny.settings import RECIPES, Recipe


def command_line(stage: Callable[[str, Recipe, int], Path], description: str | None) -> None:
    """Run `stage` on the model and the seed that the command line names, on one thread of each process."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    parallel.start()
    stage(options.name, RECIPES[options.name], options.seed)

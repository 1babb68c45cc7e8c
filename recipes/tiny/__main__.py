"""Everything that made the weights, in one command: `python -m recipes.tiny`.

Runs where it stopped: every stage keeps its checkpoint in `build/`. Several machines or cores can share the work by
`--only` and `--seeds`, for example `--only small --seeds 1 2`; the last of them then calls `recipes.tiny.publish`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from recipes.tiny.evaluate import evaluate
from recipes.tiny.finetune import finetune
from recipes.tiny.pretrain import pretrain
from recipes.tiny.publish import WEIGHTS, publish
from recipes.tiny.settings import BUILD, RECIPES, SEEDS, quick


def run(models: list[tuple[str, int]], build: Path, target: Path, *, short: bool = False) -> None:
    """Train and align the models, each a name and a seed; if all of seed 0 are among them, lay `target` out."""
    for name, seed in models:
        recipe = quick(RECIPES[name]) if short else RECIPES[name]
        pretrain(name, recipe, seed, build)
        finetune(name, recipe, seed, build)
        if not short:
            evaluate(build / f"{name}-aligned-{seed}", 300)
    if {(name, 0) for name in RECIPES} <= set(models):
        publish(0, build, target)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.tiny", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute's run into build/quick; nothing is published")
    parser.add_argument("--only", choices=sorted(RECIPES), help="only the big or only the small models")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these training seeds")
    parser.add_argument("--threads", type=int, default=1, help="other numbers change the weights' last bits")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = [options.only] if options.only else ["small", "big"]
    models = [(name, seed) for name in names for seed in options.seeds or SEEDS[name]]
    if options.quick:
        run([(name, 0) for name in names], BUILD / "quick", BUILD / "quick" / "weights", short=True)
    else:
        run(models, BUILD, WEIGHTS)


if __name__ == "__main__":
    main()

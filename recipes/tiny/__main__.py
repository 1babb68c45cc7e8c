"""Everything that made the weights, in one command: `python -m recipes.tiny`.

Runs where it stopped: every stage keeps its checkpoint in `build/`. Several machines or cores can share the work by
`--only`, for example `--only small --seeds 1 2`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from recipes.tiny.evaluate import evaluate
from recipes.tiny.finetune import finetune
from recipes.tiny.pretrain import pretrain
from recipes.tiny.publish import WEIGHTS, publish
from recipes.tiny.settings import BUILD, RECIPES, quick


def run(names: list[str], seeds: list[int], build: Path, target: Path | None, *, short: bool = False) -> None:
    """Train and align the named models, then (seed 0, all models, a `target`) lay the package's folder out."""
    for seed in seeds:
        for name in names:
            if name == "big" and seed != 0:
                continue  # one seed of the big models: they are the setting, the small ones are what varies
            recipe = quick(RECIPES[name]) if short else RECIPES[name]
            pretrain(name, recipe, seed, build)
            finetune(name, recipe, seed, build)
            if not short:
                evaluate(build / f"{name}-aligned-{seed}", 300)
    if target is not None and 0 in seeds and set(names) == set(RECIPES):
        publish(0, build, target)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.tiny", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute's run into build/quick; nothing is published")
    parser.add_argument("--only", choices=sorted(RECIPES), help="only the big or only the small models")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = [options.only] if options.only else ["small", "big"]
    if options.quick:
        run(names, options.seeds[:1], BUILD / "quick", BUILD / "quick" / "weights", short=True)
    else:
        run(names, options.seeds, BUILD, WEIGHTS)


if __name__ == "__main__":
    main()

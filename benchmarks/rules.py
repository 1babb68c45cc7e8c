"""The cost of composing one step, for every rule, in units of the floor: two log-softmax passes over the same logits.

python -m benchmarks.rules [--repeats 40]

Processor time of one thread.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import torch

from benchmarks.harness import alternate, medians, save
from benchmarks.rows import rows
from kad.method.composition import compose
from kad.rules import Rule, registry


def published(rule: str, parameter: float, base: torch.Tensor, aligned: torch.Tensor) -> torch.Tensor:
    """The formulation of the published code: dense probabilities, a full argsort for the budget."""
    p, q = base.softmax(-1), aligned.softmax(-1)
    if rule == "dual":
        deferred = (p < parameter).float()
    else:
        order = (-p.log()).argsort(dim=-1, descending=True)
        fits = p.gather(-1, order).cumsum(dim=-1) <= parameter
        deferred = torch.zeros_like(p).scatter(-1, order, fits.float())
    return ((1 - deferred) * p + q * (deferred * p).sum(-1, keepdim=True)).log()


def measure(vocab: int, count: int, repeats: int) -> dict[str, object]:
    """Median seconds and the ratio to the floor of every rule."""
    torch.set_num_threads(1)
    base, aligned, reference = (rows(vocab, seed, count) for seed in (1, 2, 3))

    def run(rule: Rule) -> torch.Tensor:
        return compose(rule, base, aligned, reference)

    candidates = {"floor": lambda: (torch.log_softmax(base, -1), torch.log_softmax(aligned, -1))}
    candidates |= {name: partial(run, cls()) for name, cls in registry().items()}
    candidates["published dual"] = lambda: published("dual", 0.4, base, aligned)
    candidates["published primal"] = lambda: published("primal", 0.9, base, aligned)
    seconds = medians(alternate(candidates, repeats, clock=time.process_time))
    return {
        "vocab": vocab,
        "positions": count,
        "threads": 1,
        "seconds": seconds,
        "floors": {name: value / seconds["floor"] for name, value in seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=40)
    repeats = parser.parse_args().repeats
    grid = [(v, r) for v in (49_152, 151_936) for r in (1, 8)]
    settings = [measure(*setting, repeats) for setting in grid]
    print("rule".ljust(18), *(f"{v // 1000}k x{r}".rjust(11) for v, r in grid))
    for name in settings[0]["floors"]:  # type: ignore[attr-defined]
        print(name.ljust(18), *(f"{s['floors'][name]:11.2f}" for s in settings))  # type: ignore[index]
    print("written to", save("rules", {"settings": settings}))


if __name__ == "__main__":
    main()

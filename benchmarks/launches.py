"""How often a GPU would be launched and waited for: operations counted one by one, without a GPU.

python -m benchmarks.launches

An operation counts as one launch (a view as none), a look at a value as one synchronisation. `sort` is several launches
on a GPU; the count of `primal` leaves that out. The code takes the way that it takes on a GPU: it is told that it is
being compiled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.harness import save
from benchmarks.rows import Repeated, rows
from kad.method.composition import Composition, compose
from kad.method.speculation.loop import SpeculativeLoop
from kad.method.speculation.policies import choose_policy
from kad.method.speculation.randomness import TorchRandomness
from kad.method.speculation.windows import FixedWindow
from kad.method.verification import verify_block
from kad.rules import RowRules, parse_rule

VOCAB, WINDOW = 4999, 8
RULES = ("dual", "confidence_bet:margin=0.1", "nudging", "relative:margin=0.1", "primal", "mixture", "implicit_reward")
_LOOKS = ("tolist", "item", "__bool__", "__int__", "__float__", "cpu", "numpy", "nonzero", "equal", "masked_select")
_NOTHING = ("empty", "detach", "lift_fresh", "_unsafe_view", "promote_types")


class Launches(TorchDispatchMode):
    """Counts the operations that reach the device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not (func.is_view or name.startswith(_NOTHING)):
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


class Looks(TorchFunctionMode):
    """Counts what waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _LOOKS:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


def count(run: Callable[[], object]) -> tuple[int, int]:
    """Launches and synchronisations of one call."""
    with mock.patch.object(torch.compiler, "is_compiling", return_value=True), Looks() as looks, Launches() as launches:
        run()
    return launches.names.total(), looks.names.total()


def window(rule: str, greedy: bool) -> Callable[[], object]:
    """One window of the loop: the open token, eight drafts, their verdict, the commitment; forwards left out."""
    base, aligned, _ = logits(WINDOW + 1)
    base = 0.01 * base  # a flat p defers, so that all drafts are accepted, and the token after them stays open
    policy = choose_policy(
        composition=Composition.of(rule), drafter="aligned", greedy=greedy, verifier=verify_block,
        randomness=TorchRandomness(),
    )  # fmt: skip
    loop = SpeculativeLoop(
        ids=torch.zeros(64, dtype=torch.long), length=1, drafter="aligned",
        scorers={"base": Repeated(base), "aligned": Repeated(aligned)}, policy=policy, window=FixedWindow(WINDOW),
        stop=lambda ids, new: (len(new), False),
    )  # fmt: skip
    windows = loop.run()
    next(windows)
    assert loop._open is not None
    return lambda: next(windows)


def logits(count: int) -> list[torch.Tensor]:
    """bfloat16 rows of three models."""
    return [rows(VOCAB, seed, count).bfloat16() for seed in range(3)]


def table() -> dict[str, tuple[int, int]]:
    """(launches, synchronisations) by what is done."""
    mixed, one, four = RowRules.of([parse_rule(rule) for rule in RULES[:4]]), logits(1), logits(4)
    found = {f"compose {rule}": count(partial(compose, rule, *one)) for rule in RULES}
    found["compose 4 rows, each its own rule"] = count(partial(compose, mixed, *four))
    for greedy in (False, True):
        for rule in ("dual", "confidence_bet:margin=0"):
            found[f"window of {WINDOW}, {'greedy' if greedy else 'sampled'}, {rule}"] = count(window(rule, greedy))
    return found


def main() -> None:
    found = table()
    print("| what | launches | synchronisations |\n|---|---:|---:|")
    for name, (launches, looks) in found.items():
        print(f"| {name} | {launches} | {looks} |")
    print("written to", save("launches", {"counts": found}))


if __name__ == "__main__":
    main()

"""How often a GPU is launched and waited for, against the limits that the design sets."""

from __future__ import annotations

import torch
from benchmarks import launches


def test_composing_and_a_window_stay_within_their_limits() -> None:
    found = launches.table()
    assert len(found) >= 12
    for name, (count, looks) in found.items():
        if name.startswith("window"):
            assert (count <= 180, looks) == (True, 1), (name, count, looks)
        elif "each its own" in name:
            # Whatever the number of rules: the parts of the closed form that the rules at hand use between them.
            assert (count <= 46, looks) == (True, 0), (name, count, looks)
        else:
            assert (count <= (30 if "primal" not in name else 40), looks) == (True, 0), (name, count, looks)


def test_the_counter_counts() -> None:
    row = torch.zeros(4)
    assert launches.count(lambda: row.exp().view(2, 2)) == (1, 0)
    assert launches.count(lambda: (row + 1).tolist()) == (1, 1)
    assert launches.count(lambda: bool(row.any()))[1] == 1

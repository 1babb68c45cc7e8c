"""`num_draft_tokens="auto"` on simulated machines, where the best window is known."""

from __future__ import annotations

import random
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from kad.errors import UsageError
from kad.method.speculation.windows import MAX_WINDOW, AutoWindow, FixedWindow, WindowSize, window_size

# (cost of a draft, of a base forward of one token, of each further token in it, how often plain decoding runs q*)
MACHINES = {
    "gpu": (0.1, 1.0, 0.0, 1.0),
    "cpu": (0.33, 1.0, 0.12, 1.0),
    "dear draft": (0.9, 1.0, 0.4, 1.0),
    "p first": (0.33, 1.0, 0.12, 0.2),
    "p first, dear draft": (0.9, 1.0, 0.4, 0.2),
}


def rate(window: WindowSize, beta: float, machine: str, tokens: int, noise: float = 0.1, seed: int = 0) -> float:
    """Tokens per unit of time of a simulated run that draws acceptances and times at random."""
    draft, base, further, runs = MACHINES[machine]
    dice, made, seconds, first = random.Random(seed), 0, 0.0, True
    while made < tokens:
        size = window.next()
        accepted = next((i for i in range(size) if dice.random() >= beta), size)
        # Plain decoding needs q* as well, now and then or at every token.
        drafts = size if size else float(dice.random() < runs)
        time = drafts * draft + base + further * size
        time *= 1 + noise * dice.uniform(-1, 1)
        chance = [min(1.0, max(0.0, dice.gauss(beta, 0.1))) for _ in range(min(accepted + 1, size))]
        window.observe(size, None if first else time, chance)
        made, seconds, first = made + accepted + 1, seconds + time, False
    return made / seconds


def best_fixed(beta: float, machine: str) -> float:
    return max(rate(FixedWindow(size), beta, machine, 2000) for size in range(MAX_WINDOW + 1))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("beta", [0.05, 0.3, 0.6, 0.8, 0.95])
def test_auto_comes_near_the_best_window(machine: str, beta: float) -> None:
    runs = [rate(AutoWindow(), beta, machine, 400, seed=seed) for seed in range(8)]
    assert sum(runs) / len(runs) > 0.88 * best_fixed(beta, machine)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.3, 0.6])
@pytest.mark.parametrize("tokens", [64, 256])
def test_auto_loses_little_where_drafting_does_not_pay(machine: str, beta: float, tokens: int) -> None:
    auto = [rate(AutoWindow(), beta, machine, tokens, seed=seed) for seed in range(20)]
    plain = [rate(FixedWindow(0), beta, machine, tokens, seed=seed) for seed in range(20)]
    # The trials at the beginning of a short text are dear where plain decoding is cheap.
    assert sum(auto) > (0.9 if tokens == 64 else 0.94) * sum(plain)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("beta", [0.05, 0.3, 0.6, 0.8, 0.95])
def test_over_fifty_short_texts_auto_loses_no_twentieth(machine: str, beta: float) -> None:
    """It goes on from what the texts before have taught it."""

    def texts(window: WindowSize, seed: int) -> float:
        return 1.0 / sum(1.0 / rate(window, beta, machine, 24, seed=100 * seed + text) for text in range(50))

    auto = sum(texts(AutoWindow(), seed) for seed in range(4)) / 4
    assert auto > 0.95 * max(texts(FixedWindow(size), 9) for size in range(MAX_WINDOW + 1))


def test_auto_follows_a_text_that_changes() -> None:
    window = AutoWindow()
    rate(window, 0.05, "gpu", 200)
    idle = [window.next() for _ in range(5)]
    rate(window, 0.95, "gpu", 1500)
    assert sum(size > 1 for size in idle) <= 1  # a trial
    assert window.next() >= 5


def test_auto_sees_that_drafts_stand_before_it_knows_any_time() -> None:
    window = AutoWindow()
    assert window.acceptance is None
    window.observe(window.next(), None, [1.0, 0.5])
    assert window.acceptance == pytest.approx(0.75, abs=0.02)


def test_fixed_sizes_and_refusals() -> None:
    assert window_size(5).next() == 5
    assert isinstance(window_size("auto"), AutoWindow)
    for wrong in (True, -1, 1.5, "8", None):
        with pytest.raises(UsageError, match="whole number >= 0 or 'auto'"):
            window_size(wrong)  # type: ignore[arg-type]


def test_texts_at_the_same_time_may_share_what_is_learned() -> None:
    """As the answers of a batch do, whose base model is on a server."""
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(40):
            window = AutoWindow()

            def write(seed: int, window: AutoWindow = window) -> None:
                for step in range(60):
                    size = window.next()
                    window.observe(size, 0.01 + 0.001 * size, [0.5] * size)
                    window.observe((seed + step) % 13, 0.02, [])

            with ThreadPoolExecutor(8) as threads:
                list(threads.map(write, range(8)))
    finally:
        sys.setswitchinterval(switch)

"""Counts and times of speculative decoding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class SpeculationStatistics:
    """Counts and times of one run, or of several runs that got the same object.

    Attributes:
        tokens: emitted tokens. Tokens that a stop rule cut off do not count.
        windows: forward passes of the base model.
        drafted: drafts that were verified.
        accepted: drafts that were accepted.
        lengths: how many windows accepted 0, 1, 2, ... drafts.
        sizes: how many windows had 0, 1, 2, ... drafts.
        corrections: tokens drawn from the residual after a rejection.
        bonus_kept: bonus tokens that p alone decided: drawn from p and kept, or its first choice whatever q* is.
        bonus_deferred: bonus tokens that were deferred and drawn from q*.
        bonus_composed: bonus tokens that were drawn from pi (or its argmax) after q* was known.
        chance_sum: the sum of the acceptance probabilities min(1, pi/q) at the positions reached.
        chance_rows: the number of these positions.
        deferred_mass_sum: the sum of the deferred mass alpha over the verified positions, for cascades only.
        deferred_mass_rows: the number of these positions.
        seconds_draft: wall time of drafting. On a GPU it does not include the running time, see `seconds_verify`.
        seconds_verify: wall time of verifying. On a GPU the queue is read here, so drafts take their time here.
        seconds_total: wall time of everything.
    """

    tokens: int = 0
    windows: int = 0
    drafted: int = 0
    accepted: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    sizes: Counter[int] = field(default_factory=Counter)
    corrections: int = 0
    bonus_kept: int = 0
    bonus_deferred: int = 0
    bonus_composed: int = 0
    chance_sum: float = 0.0
    chance_rows: int = 0
    deferred_mass_sum: float = 0.0
    deferred_mass_rows: int = 0
    seconds_draft: float = 0.0
    seconds_verify: float = 0.0
    seconds_total: float = 0.0

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted drafts over drafted tokens. None if nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def acceptance_length(self) -> float | None:
        """Accepted drafts per window. None without windows."""
        return self.accepted / self.windows if self.windows else None

    @property
    def tokens_per_window(self) -> float | None:
        """Tokens per forward pass of the base model. Speculation raises this number."""
        return self.tokens / self.windows if self.windows else None

    @property
    def beta(self) -> float | None:
        """The estimate of beta, the acceptance of one draft. None without drafts.

        It has less noise than `acceptance_rate` and does not depend on the window.
        """
        return self.chance_sum / self.chance_rows if self.chance_rows else None

    @property
    def deferred_mass(self) -> float | None:
        """The mean deferred mass. None if it was not measured."""
        return self.deferred_mass_sum / self.deferred_mass_rows if self.deferred_mass_rows else None

    @property
    def seconds_other(self) -> float:
        """The time outside of drafting and verifying: committing, streaming, stop rules, caches."""
        return max(self.seconds_total - self.seconds_draft - self.seconds_verify, 0.0)

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second of the whole run, with the time for the prompt. None before the end."""
        return self.tokens / self.seconds_total if self.seconds_total else None

    def count_window(self, drafted: int, accepted: int, chance: Sequence[float] = ()) -> None:
        """One more window."""
        self.chance_sum += sum(chance)
        self.chance_rows += len(chance)
        self.windows += 1
        self.drafted += drafted
        self.accepted += accepted
        self.lengths[accepted] += 1
        self.sizes[drafted] += 1

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON, with the derived figures."""
        counts = (
            "tokens", "windows", "drafted", "accepted", "corrections", "bonus_kept", "bonus_deferred", "bonus_composed"
        )  # fmt: skip
        derived = (
            "acceptance_rate", "acceptance_length", "beta", "tokens_per_window", "deferred_mass", "tokens_per_second",
            "seconds_draft", "seconds_verify", "seconds_other", "seconds_total",
        )  # fmt: skip
        histograms = {name: dict(sorted(getattr(self, name).items())) for name in ("lengths", "sizes")}
        return {name: getattr(self, name) for name in (*counts, *derived)} | histograms

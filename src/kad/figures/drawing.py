"""Draw the figures from their data, as PNG and SVG."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from kad.disk import write_atomically
from kad.evaluation.results.intervals import wilson
from kad.evaluation.results.plots import DASHES, MARKERS, WHOLE, bars, from_zero, save
from kad.palette import CYCLE, LIGHT
from kad.tracing.terminal import visible

BASE, ALIGNED, INK, SOFT = (LIGHT[name] for name in ("base", "aligned", "ink", "soft"))
SCHEMA = "kad-figure/2"


def write_figures(figures: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write each figure as PNG, SVG and the JSON that it was drawn from. Returns all paths.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, data in figures.items():
        path = folder / f"{name}.json"
        text = json.dumps({"schema": SCHEMA, **data}, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(path, text + "\n")
        pictures = [folder / f"{name}.{kind}" for kind in ("png", "svg")]
        save(partial(DRAWINGS[name], data), pictures, (6.4, 3.8))
        written += [path, *pictures]
    return written


def draw_distributions(data: Any, figure: Any, axes: Any) -> None:
    """Figure 1: three panels of bars, deferred mass hatched."""
    axes.remove()
    panels = figure.subplots(1, 3, sharey=True, sharex=True)
    places = range(len(data["tokens"]))
    kept, p, q, pi = (data[key] for key in ("kept", "p", "p_aligned", "pi"))
    deferred = [mass - part for mass, part in zip(p, kept, strict=True)]
    moved = [mass - part for mass, part in zip(pi, kept, strict=True)]
    panels[0].barh(places, kept, color=BASE, label="kept")
    panels[0].barh(places, deferred, left=kept, color="none", edgecolor=BASE, hatch="....", label="deferred")
    panels[0].axvline(min(data["tau"], 1.0), color=SOFT, ls=":", lw=1)
    panels[1].barh(places, q, color=ALIGNED)
    panels[2].barh(places, kept, color=BASE, label="from p")
    panels[2].barh(places, moved, left=kept, color=ALIGNED, hatch="////", edgecolor="white", lw=0, label="from q*")
    panels[0].set_yticks(places, [visible(token) for token in data["tokens"]])
    panels[0].invert_yaxis()
    titles = ("base p", "aligned q*", f"composed π, α = {data['deferred_mass']:.2f}")
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, fontsize=9)
        panel.set_xlim(0, 1)
    panels[0].legend(loc="lower right", fontsize=8)
    panels[2].legend(loc="lower right", fontsize=8)
    after = f"after “…{data['context'][-70:]}”".replace("\n", "⏎")
    figure.suptitle(f"{data['rule']}\n{after}", fontsize=9, x=0.01, ha="left", parse_math=False)


def draw_acceptance(data: Any, figure: Any, axes: Any) -> None:
    """Figure 2: one bar for each rule, with 1.96 standard errors over the answers to either side."""
    rules = sorted(data["rules"], key=lambda row: row["acceptance"])
    places = range(len(rules))
    errors = [1.96 * (row["standard_error"] or 0.0) for row in rules]
    axes.barh(places, [row["acceptance"] for row in rules], xerr=errors, color=ALIGNED, ecolor=INK, height=0.6)
    for place, row in zip(places, rules, strict=True):
        axes.text(0.01, place, f"{row['acceptance']:.3f}", va="center", color="white", fontsize=9)
    axes.set_yticks(places, [row["rule"] for row in rules])
    axes.set(xlim=(0, 1), xlabel="$\\sum_v \\min(\\pi_v, q^*_v)$, mean over positions, 95 % interval over answers")
    axes.set_title("Acceptance of a draft from q*")


def draw_entropy(data: Any, figure: Any, axes: Any) -> None:
    """Figure 3: two curves over λ."""
    axes.axhline(0, color=SOFT, lw=0.8)
    axes.plot(data["threshold"], data["sum_difference"], color=BASE, label="sum over the deferred tokens")
    axes.plot(
        data["threshold"], data["conditional_difference"], color=ALIGNED, ls="--", label="given that v is deferred"
    )
    axes.set(xlabel="threshold λ", ylabel="H[p on d] − H[p* on d], nats")
    axes.set_title(f"Entropy of p minus that of p*, {data['positions']:,} positions")
    axes.legend()


def draw_critical(data: Any, figure: Any, axes: Any) -> None:
    """Figure 4: the unfilled budget against the weight of the critical item, which it never exceeds."""
    axes.scatter(data["critical"], data["unfilled"], s=9, alpha=0.35, color=BASE, lw=0, rasterized=True)
    axes.plot([0, 1], [0, 1], color=SOFT, lw=0.8, ls="--", label="bound: no more than the critical item")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="critical item's weight (with its ties)", ylabel="unfilled budget")
    axes.legend(fontsize=8, loc="upper left")
    axes.set_title(f"What primal leaves of b = {data['budget']:g}, {len(data['critical']):,} positions")


def draw_accuracy(data: Any, figure: Any, axes: Any) -> None:
    """Figure 5: one point for each rule. Without marks it shows throughput only."""
    for row, color, marker in zip(data["rules"], CYCLE, MARKERS, strict=False):
        mark = wilson(row["accuracy"] or 0.0, row["questions"])
        axes.errorbar(
            row["tokens_per_second"], 100 * mark.estimate, yerr=None if row["accuracy"] is None else bars([mark]),
            color=color, marker=marker, markersize=7, capsize=3, linestyle="none", label=row["rule"],
        )  # fmt: skip
    questions = data["rules"][0]["questions"]
    axes.set(xlabel="tokens a second", ylabel="accuracy in %, 95 % interval", ylim=WHOLE)
    axes.set_title(f"Accuracy against throughput, {questions} questions, greedy")
    axes.set_xlim(*from_zero([row["tokens_per_second"] for row in data["rules"]]))
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def draw_gap(data: Any, figure: Any, axes: Any) -> None:
    """Figure 6: quantile curves."""
    for (name, gaps), color, style in zip(data["gap"].items(), (BASE, ALIGNED, INK), ("-", "--", ":"), strict=True):
        if gaps is not None:
            axes.plot([100 * q for q in data["quantiles"]], gaps, color=color, ls=style, label=name)
    axes.set(xlabel="positions, sorted by their gap, %", ylabel="certified gap to the optimum, nats", xlim=(0, 100.5))
    axes.set_ylim(bottom=-0.005)
    axes.set_title(f"How far from the optimum? {data['positions']:,} positions")
    axes.legend(fontsize=8)


def draw_alpha(data: Any, figure: Any, axes: Any) -> None:
    """Figure 7: one curve for each rule, up to the median length of the answers."""
    # Thin lines over thick ones, each dashed in its own way: a curve that lies on another one is seen.
    widths = [max(3.4 - 1.1 * place, 0.8) for place in range(len(CYCLE))]
    for (name, curve), color, width, dashes in zip(data["rules"].items(), CYCLE, widths, DASHES, strict=False):
        most = max(curve["answers"])
        mean = [value for value, count in zip(curve["mean"], curve["answers"], strict=True) if count >= most / 2]
        axes.plot(range(1, len(mean) + 1), mean, color=color, lw=width, ls=dashes, label=name)
    axes.set(xlabel="position in the answer", ylabel="mean deferred mass α", ylim=(-0.02, 1.02))
    axes.set_title("When the proxy speaks")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=4)


DRAWINGS: Mapping[str, Callable[[Any, Any, Any], None]] = {
    "1-distributions": draw_distributions,
    "2-acceptance": draw_acceptance,
    "3-entropy-difference": draw_entropy,
    "4-critical-item": draw_critical,
    "5-accuracy-throughput": draw_accuracy,
    "6-optimality-gap": draw_gap,
    "7-deferred-mass": draw_alpha,
}

"""Draw the figures from their data, as PNG, SVG and PDF, as wide as a column of a paper."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from kad.disk import write_atomically
from kad.evaluation.results.intervals import wilson
from kad.evaluation.results.plots import MARKERS, WHOLE, bars, from_zero, save
from kad.palette import CYCLE, LIGHT
from kad.tracing.terminal import visible

BASE, ALIGNED, INK, SOFT = (LIGHT[name] for name in ("base", "aligned", "ink", "soft"))
SCHEMA = "kad-figure/2"
# One column of the ACL's papers is 7.7 cm wide.
_WIDTH = 3.3
_STYLE: Mapping[str, Any] = {
    "font.size": 7, "axes.titlesize": 7.5, "axes.linewidth": 0.6, "figure.dpi": 300, "hatch.linewidth": 0.6,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6,
}  # fmt: skip


def write_figures(figures: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write each figure as PNG, SVG, PDF and the JSON that it was drawn from. Returns all paths.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, data in figures.items():
        path = folder / f"{name}.json"
        text = json.dumps({"schema": SCHEMA, **data}, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(path, text + "\n")
        pictures = [folder / f"{name}.{kind}" for kind in ("pdf", "png", "svg")]
        save(partial(DRAWINGS[name], data), pictures, (_WIDTH, _HEIGHTS.get(name, 2.3)), _STYLE)
        written += [path, *pictures]
    return written


def draw_distributions(data: Any, figure: Any, axes: Any) -> None:
    """Figure 1: three panels of bars, deferred mass dotted."""
    axes.remove()
    panels = figure.subplots(1, 3, sharey=True, sharex=True)
    places = range(len(data["tokens"]))
    kept, p, q, pi = (data[key] for key in ("kept", "p", "p_aligned", "pi"))
    deferred = [mass - part for mass, part in zip(p, kept, strict=True)]
    moved = [mass - part for mass, part in zip(pi, kept, strict=True)]
    panels[0].barh(places, kept, color=BASE)
    panels[0].barh(places, deferred, left=kept, color="none", edgecolor=BASE, hatch="....", lw=0.6)
    panels[0].axvline(min(data["tau"], 1.0), color=SOFT, ls=":", lw=0.8)
    panels[1].barh(places, q, color=ALIGNED)
    panels[2].barh(places, kept, color=BASE)
    panels[2].barh(places, moved, left=kept, color=ALIGNED, hatch="////", edgecolor="white", lw=0)
    _name_bar(panels[0], "kept", kept, BASE, p)
    _name_bar(panels[0], "deferred", deferred, BASE, p)
    _name_bar(panels[2], "from p", kept, BASE, pi)
    _name_bar(panels[2], "from q*", moved, ALIGNED, pi)
    panels[0].set_yticks(places, [visible(token) for token in data["tokens"]], family="monospace", parse_math=False)
    panels[0].invert_yaxis()
    titles = ("base p", "aligned q*", "composed π")
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, fontweight="normal")
        panel.set(xlim=(0, 1.02), xticks=(0, 0.5, 1), xticklabels=("0", ".5", "1"))
    after = f"after “…{data['context'][-34:]}”".replace("\n", "⏎")
    figure.suptitle(
        f"{data['rule']}, α = {data['deferred_mass']:.2f}, {after}", fontsize=6.5, x=0.01, ha="left", parse_math=False
    )


def _name_bar(panel: Any, name: str, parts: Any, color: str, whole: Any) -> None:
    """Write a name beside the longest bar of its kind."""
    place = max(range(len(parts)), key=lambda index: float(parts[index]))
    if parts[place] > 0:
        inside = whole[place] > 0.5
        at, side, ink = (0.03, "left", "white") if inside and color != "none" else (whole[place] + 0.03, "left", color)
        panel.text(at, place, name, ha=side, va="center", color=ink, fontsize=6)


def draw_acceptance(data: Any, figure: Any, axes: Any) -> None:
    """Figure 2: a dot for each rule with 1.96 standard errors to either side, and a ring where drafts were tried."""
    rules = sorted(data["rules"], key=lambda row: row["acceptance"])
    places = range(len(rules))
    errors = [1.96 * (row["standard_error"] or 0.0) for row in rules]
    means = [row["acceptance"] for row in rules]
    axes.errorbar(means, places, xerr=errors, color=ALIGNED, marker="o", ms=4, ls="none", capsize=2, lw=1)
    tried = [
        (row["empirical"], place) for place, row in zip(places, rules, strict=True) if row["empirical"] is not None
    ]
    if tried:
        axes.plot(*zip(*tried, strict=True), color=INK, marker="o", ms=5.5, ls="none", fillstyle="none", mew=0.8)
    axes.set_yticks(places, [row["rule"] for row in rules])
    lowest = min(0.75, *(mean - error for mean, error in zip(means, errors, strict=True)), *(rate for rate, _ in tried))
    axes.set(xlim=(int(20 * lowest) / 20 - (0.005 if lowest < 0.75 else 0), 1.01), ylim=(-0.6, len(rules) - 0.4))
    axes.grid(axis="x", lw=0.4, color=LIGHT["rule"])
    axes.set_axisbelow(True)
    dot = "dot: mean of $\\sum_v \\min(\\pi_v, q^*_v)$, 95 % interval over answers"
    figure.supxlabel(f"{dot}\nring: accepted of the drafts tried, in sampled answers", fontsize=6.5)
    _title(figure, "Acceptance of a draft from q*")


def draw_entropy(data: Any, figure: Any, axes: Any) -> None:
    """Figure 3: one curve over λ, with 1.96 standard errors to either side."""
    x, y = data["threshold"], data["sum_difference"]
    axes.axhline(0, color=SOFT, lw=0.6)
    if data["sum_error"] is not None:
        low, high = (
            [value + sign * 1.96 * e for value, e in zip(y, data["sum_error"], strict=True)] for sign in (-1, 1)
        )
        axes.fill_between(x, low, high, color=BASE, alpha=0.2, lw=0)
    axes.plot(x, y, color=BASE, lw=1.2)
    axes.set(xlabel="threshold λ", ylabel="H[p on d] − H[p* on d], nats", xlim=(0, 1))
    axes.set_title(f"Entropy of p minus that of p*, {data['positions']:,} positions")


def draw_critical(data: Any, figure: Any, axes: Any) -> None:
    """Figure 4: the unfilled budget against the weight of the critical item, which it never exceeds."""
    axes.scatter(data["critical"], data["unfilled"], s=5, alpha=0.35, color=BASE, lw=0, rasterized=True)
    axes.plot([0, 1], [0, 1], color=SOFT, lw=0.8, ls="--")
    axes.set_aspect("equal")
    axes.text(
        0.47, 0.5, "no more than the critical item", rotation=45, rotation_mode="anchor", ha="center", va="bottom",
        color=SOFT, fontsize=6.5,
    )  # fmt: skip
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="critical item's weight (with its ties)", ylabel="unfilled budget")
    axes.set_title(f"What primal leaves of b = {data['budget']:g}, {len(data['critical']):,} positions")


def draw_accuracy(data: Any, figure: Any, axes: Any) -> None:
    """Figure 5: one named point for each rule. Without marks it shows throughput only."""
    points = []
    for row, color, marker in zip(data["rules"], CYCLE, MARKERS, strict=False):
        mark = wilson(row["accuracy"] or 0.0, row["questions"])
        axes.errorbar(
            row["tokens_per_second"], 100 * mark.estimate, yerr=None if row["accuracy"] is None else bars([mark]),
            color=color, marker=marker, markersize=4, capsize=2, lw=0.8, linestyle="none",
        )  # fmt: skip
        points.append((row["tokens_per_second"], 100 * mark.estimate, row["rule"], color))
    questions = data["rules"][0]["questions"]
    axes.set(xlabel="tokens a second", ylabel="accuracy in %, 95 % interval", ylim=WHOLE)
    _title(figure, f"Accuracy against throughput, {questions} questions, greedy")
    axes.set_xlim(*from_zero([row["tokens_per_second"] for row in data["rules"]]))
    # The names stand in the margin, in the order of their points, so that none hides another.
    for y, (x, own, name, color) in _apart(points):
        axes.annotate(
            name, (x, own), (1.03, y), textcoords=axes.get_yaxis_transform(), va="center", color=color, fontsize=6,
            annotation_clip=False, arrowprops={"arrowstyle": "-", "color": color, "lw": 0.4, "alpha": 0.6},
        )  # fmt: skip


def _apart(points: list[tuple[float, float, str, str]], distance: float = 9.0) -> list[tuple[float, Any]]:
    """Points by falling height, each with a height for its name that is some way from the one above."""
    placed: list[tuple[float, Any]] = []
    above = 100.0 + distance
    for point in sorted(points, key=lambda point: (-point[1], -point[0])):
        above = min(point[1], above - distance)
        placed.append((above, point))
    lift = max(0.0, 2.0 - above)
    return [(height + lift, point) for height, point in placed]


def draw_gap(data: Any, figure: Any, axes: Any) -> None:
    """Figure 6: quantile curves, from the first position that has a gap."""
    quantiles = [100 * q for q in data["quantiles"]]
    curves = {name: gaps for name, gaps in data["gap"].items() if gaps is not None}
    highest = max((max(gaps) for gaps in curves.values()), default=1.0)
    first = min(
        (q for gaps in curves.values() for q, gap in zip(quantiles, gaps, strict=True) if gap > 1e-5), default=0.0
    )
    for (name, gaps), color, style in zip(data["gap"].items(), (BASE, ALIGNED, INK), ("-", "--", ":"), strict=True):
        if gaps is None:
            continue
        axes.plot(quantiles, gaps, color=color, ls=style, lw=1.2)
        head, _, tail = name.partition(", ")
        axes.annotate(
            f"{head}\n{tail}".strip(), (100, gaps[-1]), (3, 0), textcoords="offset points", va="center", color=color,
            fontsize=6, annotation_clip=False,
        )  # fmt: skip
    axes.set(
        xlabel=f"positions, sorted by their gap, from {first:g} %", ylabel="certified gap, nats", xlim=(first, 100)
    )
    axes.set_ylim(-0.02 * highest, None)
    axes.set_title(f"How far from the optimum? {data['positions']:,} positions")


def draw_alpha(data: Any, figure: Any, axes: Any) -> None:
    """Figure 7: a panel for each rule, the others pale behind it, up to the median length of the answers."""
    axes.remove()
    curves = {}
    for name, curve in data["rules"].items():
        most = max(curve["answers"])
        means = [value for value, count in zip(curve["mean"], curve["answers"], strict=True) if count >= most / 2]
        curves[name] = means
    panels = figure.subplots(len(curves), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for panel, (name, color) in zip(panels, zip(curves, CYCLE, strict=False), strict=True):
        for other, means in curves.items():
            front = {"color": color, "lw": 1.2, "zorder": 3} if other == name else {"color": LIGHT["others"], "lw": 0.8}
            panel.plot(range(1, len(means) + 1), means, **front)
        panel.set_title(name, color=color, pad=2)
        panel.set(ylim=(-0.03, 1.03), yticks=(0, 0.5, 1))
    panels[-1].set_xlabel("position in the answer")
    panels[len(panels) // 2].set_ylabel("mean deferred mass α")
    _title(figure, "When the proxy speaks")


def _title(figure: Any, text: str) -> None:
    """A title of the whole figure, which may be wider than its axes."""
    figure.suptitle(text, fontsize=7.5, fontweight="bold", x=0.01, ha="left")


_HEIGHTS = {"1-distributions": 1.7, "2-acceptance": 2.2, "4-critical-item": 3.2, "7-deferred-mass": 3.2}
DRAWINGS: Mapping[str, Callable[[Any, Any, Any], None]] = {
    "1-distributions": draw_distributions,
    "2-acceptance": draw_acceptance,
    "3-entropy-difference": draw_entropy,
    "4-critical-item": draw_critical,
    "5-accuracy-throughput": draw_accuracy,
    "6-optimality-gap": draw_gap,
    "7-deferred-mass": draw_alpha,
}

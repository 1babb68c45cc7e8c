"""The picture of docs/teacher.md, from results/teacher.json: `python -m benchmarks.teacher_figure`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kad.tracing.palette import CYCLE, LIGHT

from benchmarks.harness import RESULTS
from kad.evaluation.results.plots import DASHES, MARKERS, WHOLE, save

_PICTURE = Path(__file__).parents[1] / "docs" / "images" / "teacher.svg"


def draw(summary: Any, figure: Any, axes: Any) -> None:
    """Solved problems by steps, over all of them and over those that q* alone fails, with 95 % intervals."""
    axes.remove()
    panels = figure.subplots(1, 2, sharey=True)
    for panel, part, title in zip(
        panels, ("all", "q* fails"), ("all problems", "those that q* alone fails"), strict=True
    ):
        for name, style in (("pair", ":"), ("q*", "-.")):
            level = summary["alone"][name][part][0]
            panel.axhline(level, color=LIGHT["soft"], ls=style, lw=1, label=f"{name}, without training")
        for place, (way, points) in enumerate(summary["students"].items()):
            steps = [0, *map(int, points)]
            values = [summary["alone"]["p"][part], *(points[at][part] for at in points)]
            reach = [[value[0] - value[1] for value in values], [value[2] - value[0] for value in values]]
            panel.errorbar(
                steps, [value[0] for value in values], yerr=reach, capsize=3, lw=1.2, label=way, color=CYCLE[place],
                marker=MARKERS[place], ls=DASHES[place],
            )  # fmt: skip
        panel.set(title=title, xlabel="steps of 16 prompts", ylim=WHOLE)
    panels[0].set(ylabel="solved in %, 95 % interval")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", fontsize=8, ncols=2)


if __name__ == "__main__":
    stored = json.loads((RESULTS / "teacher.json").read_text())["summary"]
    save(lambda figure, axes: draw(stored, figure, axes), [_PICTURE], (7, 4.2))

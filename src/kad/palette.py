"""The colors, for pages, figures, notebooks and the terminal: blue is the base model, orange the aligned one.

Blue and vermilion are those of Okabe and Ito. People with any common color blindness can distinguish them. A color is
never the only sign.
"""

from __future__ import annotations

from collections.abc import Mapping

LIGHT = {
    "paper": "#fbfaf8", "card": "#fff", "ink": "#1d1f23", "soft": "#62666d", "rule": "#e3e0da", "focus": "#1d1f23",
    "base": "#0072b2", "aligned": "#d55e00", "base-tint": "#d3e8f5", "aligned-tint": "#fbdcc4", "pi": "#5b5f66",
    "others": "#c9c6c0", "heat": "#009e73",
}  # fmt: skip
DARK = {
    "paper": "#15171a", "card": "#1d2024", "ink": "#e9e7e3", "soft": "#a0a4ab", "rule": "#32363c", "focus": "#fff",
    "base": "#56b4e9", "aligned": "#f0894a", "base-tint": "#173c52", "aligned-tint": "#57301a", "pi": "#b4b8bf",
    "others": "#4a4e55", "heat": "#1fae86",
}  # fmt: skip
CYCLE = (LIGHT["base"], LIGHT["aligned"], LIGHT["heat"], "#cc79a7", "#e69f00", DARK["base"], "#000000")
"""The colors of the methods in a plot."""
# A terminal is black or white, nobody knows which. These two are equally bright, and readable on both.
_TERMINAL_BASE, _TERMINAL_ALIGNED = (47, 134, 214), (201, 106, 0)
# The models of a pair of pairs, in a terminal: each has a color, and a way of writing that needs no colors. More of
# them begin again.
_LEAVES = (
    "#2f86d6", "#c96a00 underline", "#009e73 italic", "#b05f93 bold", "#8a7d2b bold underline", "#7f7f7f reverse",
)  # fmt: skip


def css(colors: Mapping[str, str]) -> str:
    """The colors as variables of a style sheet."""
    return " ".join(f"--{name}: {color};" for name, color in colors.items())


def color(base_share: float) -> str:
    """In a terminal or a notebook: from the aligned model's color (share 0) over gray to the base model's (share 1)."""
    ends = zip(_TERMINAL_ALIGNED, _TERMINAL_BASE, strict=True)
    return "#{:02x}{:02x}{:02x}".format(*(round(a + (b - a) * base_share) for a, b in ends))


def leaf_style(index: int) -> str:
    """The style of a model of a pair of pairs in a terminal, by its place among them."""
    return _LEAVES[index % len(_LEAVES)]


def style(base_share: float | None) -> str:
    """The style of a token in a terminal. None has no color.

    If more of it comes from the aligned model, it is underlined, which needs no colors.
    """
    if base_share is None:
        return ""
    return color(base_share) if base_share >= 0.5 else f"{color(base_share)} underline"

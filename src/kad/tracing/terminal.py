"""A trace in the terminal: the text colored by origin, alpha and acceptance as bars, and a table of positions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from kad import palette
from kad.tracing.positions import Position, summary
from kad.words import counted, shown

_BARS = " ▁▂▃▄▅▆▇█"
_GLYPHS = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"})
_WIDTH = 72
_LISTED = 8
# What three decimals show.
_SHOWN = 0.0005


def render(
    rule_text: str,
    positions: Sequence[Position],
    vocabulary: Mapping[int, str],
    every_position: bool = False,
    ended_by: str | None = None,
) -> RenderableType:
    """A trace for `rich.print`: every position, or by default those where one model overruled the other."""
    answer = colored((position.text, position.base_share) for position in positions)
    parts: list[RenderableType] = [_headline(rule_text, positions, ended_by)]
    if names := leaves_of(positions):
        styles = {name: palette.leaf_style(index) for index, name in enumerate(names)}
        parts.append(_legend(positions, styles))
        answer = Text.assemble(*((shown(position.text), styles[main_leaf(position)]) for position in positions))
    parts.append(Padding(answer, (1, 0)))
    parts += [_bars("α deferred  ", [position.deferred_mass for position in positions])]
    parts += [_bars("β acceptance", [position.acceptance for position in positions])]
    words = {token: visible(text) for token, text in vocabulary.items()}
    lists = {
        "p overruled q* (knowledge)": overruled(positions, "p", "p_aligned"),
        "q* overruled p (manners)": overruled(positions, "p_aligned", "p"),
    }
    if every_position:
        lists = {"every token": list(range(len(positions)))}
    for name, found in lists.items():
        listed = found if every_position else found[:_LISTED]
        title = f"{name}: {f'{len(listed)} of ' if len(listed) < len(found) else ''}{len(found)}"
        table = _table(positions, words, listed, title) if listed else Text(title, "bold")
        parts += [Padding(table, (1, 0, 0, 0))]
        if any(_is_bounded(positions[index]) for index in listed):
            parts += [Text("≥ ≤  A part of p belongs to no token here (docs/trace.md).", "dim")]
    return Group(*parts)


def leaves_of(positions: Sequence[Position]) -> list[str]:
    """The models of a pair of pairs, by their paths. Empty for a pair of models, and for a product."""
    return list(positions[0].leaves or ())


def main_leaf(position: Position) -> str:
    """The model that most of a token came from."""
    shares = position.leaves or {}
    return max(shares, key=lambda path: shares[path])


def _legend(positions: Sequence[Position], styles: Mapping[str, str]) -> Text:
    line = Text("from ", "dim")
    for name, style in styles.items():
        share = sum((position.leaves or {})[name] for position in positions) / len(positions)
        line.append(name, style).append(f" {share:.0%}   ")
    return line


def overruled(positions: Sequence[Position], winner: str, loser: str) -> list[int]:
    """The positions whose token is the winner's first choice and not the loser's: the surer the loser was, the earlier.

    The models are `p` and `p_aligned`. How sure: the probability of its own first choice, less that of the token.
    """

    def sureness(index: int) -> float:
        position = positions[index]
        return float(getattr(position.first(loser), loser) - getattr(position, loser))

    found = [
        index
        for index, position in enumerate(positions)
        if position.first(winner).token == position.token != position.first(loser).token
    ]
    return sorted(found, key=sureness, reverse=True)


def colored(pieces: Iterable[tuple[str, float | None]]) -> Text:
    """A text, given as pieces with the share of the base model, each between that model's blue and orange."""
    return Text.assemble(*((shown(piece), palette.style(share)) for piece, share in pieces))


def visible(text: str) -> str:
    """A token as a label: blanks and control characters as signs."""
    # Other control characters would reach the terminal as commands.
    return "".join(c if c.isprintable() else "�" for c in text.translate(_GLYPHS)) or "∅"


def _headline(rule_text: str, positions: Sequence[Position], ended_by: str | None) -> Text:
    counts = summary(positions)
    share, alpha = counts["mean_base_share"], counts["mean_deferred_mass"]
    line = Text(f"{shown(rule_text)}   {counted(len(positions), 'token')}   ", "bold")
    if share is not None and alpha is not None:
        line.append("base ", palette.style(1.0)).append(f"{share:.0%}   ").append("aligned", palette.style(0.0))
        line.append(f" {1 - share:.0%}   mean α {alpha:.3f}")
    line.append(f"   mean β {counts['mean_acceptance']:.3f}")
    if ended_by is not None:
        line.append("   ended by ").append(ended_by, palette.style(float(ended_by == "base")))
    if counts["accepted"] or counts["corrected"]:
        line.append(f"   drafts accepted {counts['accepted']}, rejected {counts['corrected']}", "dim")
    return line


def _bars(name: str, values: Sequence[float | None]) -> Text:
    if any(value is None for value in values):
        return Text(f"{name} – (a product of models defers nothing)", "dim")
    present = [value for value in values if value is not None]
    bins = min(_WIDTH, len(present))
    ends = [index * len(present) // bins for index in range(bins + 1)]
    means = [sum(present[start:end]) / (end - start) for start, end in pairwise(ends)]
    bars = "".join(_BARS[round(min(max(mean, 0.0), 1.0) * (len(_BARS) - 1))] for mean in means)
    return Text.assemble((f"{name} ", "dim"), bars)


def _table(positions: Sequence[Position], words: Mapping[int, str], listed: Sequence[int], title: str) -> Table:
    # If the threshold is the same everywhere, the rule's name already says it.
    varies = len({position.tau for position in positions}) > 1
    speculated = any(position.event for position in positions)
    numbers = ("base", "p", "q*", "π", "α", *(["τ"] if varies else []))
    table = Table(
        Column("#", justify="right", no_wrap=True, min_width=len(str(len(positions)))),
        Column("token", no_wrap=True, max_width=14),
        *(Column(name, justify="right", no_wrap=True, min_width=4) for name in numbers),
        *(Column(name, no_wrap=True, max_width=14) for name in ("p's first", "q*'s first")),
        *([Column("draft", no_wrap=True, min_width=8)] if speculated else []),
        *([Column("from", no_wrap=True, min_width=max(map(len, names)))] if (names := leaves_of(positions)) else []),
        title=title, title_justify="left", title_style="bold", header_style="dim", box=None, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for index in listed:
        position = positions[index]
        tau = [_tau(position.tau)] if varies else []
        event = [_event(words, position)] if speculated else []
        leaf = [main_leaf(position)] if names else []
        table.add_row(*_numbers(words, index + 1, position), *tau, *_firsts(words, position), *event, *leaf)
    return table


def _numbers(words: Mapping[int, str], number: int, position: Position) -> list[Text | str]:
    share = position.base_share
    return [
        str(number),
        Text(words[position.token], palette.style(share)),
        "–" if share is None else f"{share:.0%}",
        _bounded(position.p, position),
        *(_probability(value) for value in (position.p_aligned, position.pi)),
        "–" if position.deferred_mass is None else _probability(position.deferred_mass),
    ]


def _firsts(words: Mapping[int, str], position: Position) -> list[Text]:
    of_p, of_aligned = (position.first(model) for model in ("p", "p_aligned"))
    masses = _bounded(of_p.p, position), _probability(of_aligned.p_aligned)
    return [Text(f"{mass} {words[row.token]}") for mass, row in zip(masses, (of_p, of_aligned), strict=True)]


def _is_bounded(position: Position) -> bool:
    return (position.nobody or 0.0) >= _SHOWN


def _bounded(p: float, position: Position) -> str:
    """A probability of p, or what is known of it where a part of p belongs to no token."""
    if not _is_bounded(position):
        return _probability(p)
    return f"≥{_probability(p)}" if p >= _SHOWN else f"≤{_probability(min(1.0, p + (position.nobody or 0.0)))}"


def _probability(value: float) -> str:
    """Three decimals in four characters."""
    return f"{value:.3f}".removeprefix("0")[:4]


def _tau(tau: float | None) -> str:
    if tau is None:
        return "–"
    return "all" if tau <= 0 else "none" if tau > 1 else _probability(tau)


def _event(words: Mapping[int, str], position: Position) -> str:
    if position.event == "corrected" and position.rejected_draft is not None:
        return f"✗ {words[position.rejected_draft]}"
    return "✓" if position.event == "accepted" else position.event or ""

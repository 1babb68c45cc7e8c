"""How the origin of each token is shown: in the colors of the two models, and blends of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.text import Text

from kad.errors import UsageError
from kad.tracing.palette import color, style

if TYPE_CHECKING:
    from kad.method.composition import Composition


def require(composition: Composition) -> None:
    """Refuse what has no origins.

    Raises:
        UsageError: a product rule, whose tokens do not come from one model or the other.
    """
    from kad.method.rules import CascadeRule

    if not isinstance(composition.rule, CascadeRule):
        raise UsageError(
            f"Rule {composition.rule} multiplies the models, so no token comes from one of them: no --color."
        )


def render(pieces: Iterable[tuple[str, float]]) -> Text:
    """A text in the colors of its origins, given as pieces with the share of the base model."""
    return Text.assemble(*((piece, style(share)) for piece, share in pieces))


def legend(base_share: float, deferred_mass: float) -> Text:
    """What the colors mean, and the share of each model. The numbers are means over the text."""
    text = Text.assemble(
        ("base model", style(1.0)),
        (f" {base_share:.0%}  ", "dim"),
        *(("█", color(1 - step / 7)) for step in range(8)),
        "  ",
        ("aligned model", style(0.0)),
        (f" {1 - base_share:.0%}", "dim"),
        (f"   deferred mass {deferred_mass:.2f}", "dim"),
    )
    text.no_wrap = True
    return text

"""The words of a message: numbers ("1 token", "1,000 KiB", "14.8 B"), and texts of others that a terminal may show."""

from __future__ import annotations

import re
from collections.abc import Sequence

_COUNTS = (("B", 1e9), ("M", 1e6), ("K", 1e3), ("", 1.0))
_SIZES = (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10), ("B", 1.0))


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def shown(text: str) -> str:
    """A text as a terminal may show it: control characters, but line breaks and tabs, are written as their numbers.

    A terminal obeys them: they write to its clipboard, set its title, or hide what was there.
    """
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def half_character(text: str) -> str | None:
    """The half of a surrogate pair that stands in a text, in words. It is no character. None if there is none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half of a character (\\u{ord(text[error.start]):04x}) at place {error.start}"
    return None


def counted(number: int, thing: str) -> str:
    """A number of things: "1 token", "2,048 tokens"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def count_text(number: float) -> str:
    """A large count in three digits: "14.8 B"."""
    return _scaled(number, _COUNTS)


def size_text(number: float) -> str:
    """A size in bytes in three digits: "1.5 GiB"."""
    return _scaled(number, _SIZES)


def _scaled(number: float, units: Sequence[tuple[str, float]]) -> str:
    unit, scale = next(((unit, scale) for unit, scale in units if number >= scale), units[-1])
    value = number / scale
    # Three digits of 1,010 would be 1.01e+03.
    return f"{value:,.0f} {unit}".rstrip() if value >= 999.5 or scale == 1.0 else f"{value:.3g} {unit}"

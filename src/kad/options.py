"""Declares an option once, for Python and the command line: its name, its help and its allowed values.

A group of options is a frozen dataclass whose fields are `Annotated[type, Option(...)]` and whose `__post_init__` calls
`check_fields`. `kad.cli.flatten` spreads a group into the options of a command.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

from kad.errors import OptionError

SEEDS = "[0, 9223372036854775807]"
"""What torch takes as a seed."""


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        help: what it does, as a sentence.
        metavar: what stands for its value on the help page; a flag has none.
        short: a name of one letter, like "-n".
        name: the long name, where it is not the field's.
        allowed: ">= 1", "> 0", an interval like "(0, 1]" or "0 or [1, 2]" for a number; the choices for a text.
        shown: how the help page says the default, where the default itself says nothing.
        parse: makes the value from the text on the command line.
        panel: the part of the help page, where it is not the group's `PANEL`.
    """

    help: str
    metavar: str | None = None
    short: str | None = None
    name: str | None = None
    allowed: str | tuple[str, ...] | None = None
    shown: str | None = None
    parse: Callable[[str], Any] | None = None
    panel: str | None = None

    def check(self, name: str, value: Any) -> None:
        """Refuse a value that is not allowed; None means that the option is not given.

        Args:
            name: the option as the caller writes it.
            value: what it was given.

        Raises:
            UsageError: the value is not allowed.
        """
        if value is None or self.allowed is None:
            return
        if isinstance(self.allowed, tuple):
            if value not in self.allowed:
                raise OptionError(f"Unknown {name} {value!r}. Choose from: {', '.join(self.allowed)}.")
        elif not _within(value, self.allowed):
            shown = value if isinstance(value, int) else f"{value:g}"
            raise OptionError(f"{name} must be {self.bounds}, but is {shown}.")

    @property
    def bounds(self) -> str:
        """The allowed numbers in words: ">= 1", "in (0, 1]", "0 or in [1, 2]"."""
        allowed = str(self.allowed)
        return allowed if allowed.startswith(">") else f"in {allowed}".replace("in 0 or", "0 or in")


def options_of(group: type[Any]) -> dict[str, Option]:
    """The options of a group of options, by field."""
    hints = get_type_hints(group, include_extras=True)
    return {name: option for name, hint in hints.items() if (option := option_in(hint)) is not None}


def option_in(hint: Any) -> Option | None:
    """The option that a type annotation carries, if it carries one."""
    return next((extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Option)), None)


def check_fields(group: Any) -> None:
    """Check every option of a group of options.

    Raises:
        UsageError: a value is not allowed.
    """
    for name, option in options_of(type(group)).items():
        option.check(f"`{name}`", getattr(group, name))


def _within(value: float, allowed: str) -> bool:
    """Whether a number is in ">= 1", "> 0", "[0, 1]" or "0 or [1, 2]"; NaN is in none, infinity in no `>`."""
    if allowed.startswith("0 or "):
        return value == 0 or _within(value, allowed.removeprefix("0 or "))
    if allowed.startswith(">"):
        bound = float(allowed.lstrip(">= "))
        return value < math.inf and (value >= bound if allowed.startswith(">=") else value > bound)
    low, high = (float(end) for end in allowed[1:-1].split(","))
    return (low < value or (allowed[0] == "[" and value == low)) and (
        value < high or (allowed[-1] == "]" and value == high)
    )

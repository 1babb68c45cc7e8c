"""Ends the lines of a terminal between words."""

from __future__ import annotations

import re
from collections.abc import Callable

from rich.cells import cell_len

# A character of two cells may stand at the end of a line: such scripts have no spaces.
_UNITS = re.compile(r"\n|[^\S\n]|[\u1100-\U0003ffff]|[^\s\u1100-\U0003ffff]+")


class Wrapper:
    """Writes a text in lines of a width. The last word waits until it is complete.

    Args:
        write: prints a text.
        width: the cells of a line. It is called for each word, because terminals change their size.
        column: how many cells of the first line are taken.
    """

    def __init__(self, write: Callable[[str], object], width: Callable[[], int], column: int = 0) -> None:
        self._write, self._width = write, width
        self._column = column
        self._spaces = self._word = ""

    def push(self, piece: str) -> None:
        """Take the next piece of the text."""
        for unit in _UNITS.findall(piece):
            if unit == "\n":
                self.finish()
                self._write("\n")
                self._column = 0
            elif unit.isspace():
                self._show_word()
                self._spaces += unit
            elif cell_len(unit[0]) == 2:
                self._show_word()
                self._word = unit
            else:
                if self._word and cell_len(self._word[0]) == 2:
                    self._show_word()
                self._word += unit

    def finish(self) -> None:
        """Write the text that waits."""
        self._show_word()
        self._write(self._spaces)
        self._column, self._spaces = self._column + cell_len(self._spaces), ""

    def _show_word(self) -> None:
        if not self._word:
            return
        spaces, size, width = self._spaces, cell_len(self._word), self._width()
        if self._column > 0 and self._column + cell_len(spaces) + size > width:
            spaces, self._column = "\n", 0
        self._write(spaces + self._word)
        self._column += size + (0 if spaces == "\n" else cell_len(spaces))
        self._spaces = self._word = ""

"""The header of a GGUF file, walked before a library reads it: libraries believe its counts, which may be anything."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from kad.errors import PairError

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a number, by its type
_STRING, _ARRAY = 8, 9
_CUT = "it ends before its header does"
_MOST_FIELDS, _MOST_TENSORS, _MOST_ENTRIES = 1 << 16, 1 << 20, 1 << 22


def check_gguf(path: Path) -> None:
    """Refuse a file whose header promises more than the file holds, or more than any model has.

    Raises:
        PairError: it does, it cannot be read, or it is no GGUF file.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise PairError(f"{path} is no GGUF file: it does not begin with GGUF.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _Walk(data).header()
    except OSError as error:
        raise PairError(f"Cannot read {path}: {error.strerror or error}.") from error
    except PairError:
        raise
    except ValueError as error:
        raise PairError(f"{path} is damaged: {error}. Get the file again, or take another.") from error


class _Walk:
    """A place in a header."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._place, self._entries = data, 4, 0
        self._order = ">" if self._number("<I") & 0xFFFF == 0 else "<"

    def header(self) -> None:
        """Walk it, up to the tensors."""
        tensors, fields = self._number("Q"), self._number("Q")
        if fields > _MOST_FIELDS or tensors > _MOST_TENSORS:
            raise ValueError(f"it names {fields} fields and {tensors} tensors")
        for _ in range(fields):
            self._skip(self._number("Q"))
            self._value(self._number("I"))

    def _value(self, kind: int) -> None:
        if kind == _STRING:
            self._skip(self._number("Q"))
        elif kind == _ARRAY:
            inner, count = self._number("I"), self._number("Q")
            self._entries += count
            if inner == _ARRAY or self._entries > _MOST_ENTRIES:
                raise ValueError(f"it has a list of {count} entries")
            if inner == _STRING:
                self._texts(count)
            else:
                self._skip(count * _size(inner))
        else:
            self._skip(_size(kind))

    def _texts(self, count: int) -> None:
        """Hundreds of thousands of tokens: no call for each."""
        place, length = self._place, struct.Struct(f"{self._order}Q")
        for _ in range(count):
            if place > len(self._data) - length.size:
                raise ValueError(_CUT)
            place += length.size + length.unpack_from(self._data, place)[0]
        self._skip(place - self._place)

    def _number(self, kind: str) -> int:
        layout = kind if len(kind) > 1 else self._order + kind
        place = self._place
        self._skip(struct.calcsize(layout))
        return int(struct.unpack_from(layout, self._data, place)[0])

    def _skip(self, count: int) -> None:
        if count > len(self._data) - self._place:
            raise ValueError(_CUT)
        self._place += count


def _size(kind: int) -> int:
    if kind not in _SIZES:
        raise ValueError(f"it has a value of the unknown type {kind}")
    return _SIZES[kind]

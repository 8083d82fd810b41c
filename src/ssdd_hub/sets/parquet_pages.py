"""The number of values in each page of a parquet file, read from the pages' headers; nothing is decoded.

Run lengths and compression make gigabytes of a kilobyte, and the reader decodes a whole row at once. Footer and
headers are structures in Thrift's compact protocol, of which pyarrow shows no page, and some of it not safely.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

_LONGEST_HEADER = 2**13  # bytes of a page's header, with statistics of numbers
_MOST_LEVELS = 20
_PER_PAGE = 2**20  # bytes of a page before compression, beside its values
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3  # kinds of pages
_HEADERS = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}  # the field that holds the number of values of each

Fields = dict[int, Any]


class OtherSizeError(Exception):
    """Pages hold more or fewer values than they should; its text is the name of the column."""


def count_rows(path: Path, footer_bytes: int, per_row: Mapping[str, tuple[int, int]]) -> int:
    """Returns the rows of a file whose pages hold exactly so many values a row in each of some columns.

    Args:
        path: The file.
        footer_bytes: The length of its footer.
        per_row: Values a row, and the most bytes of one with the levels of its lists, by the name of the column.

    Raises:
        OtherSizeError: The pages hold more or fewer values, or would be larger than these.
        Exception: Of any kind, for a damaged footer or header.
    """
    rows = 0
    with path.open("rb") as file:
        file.seek(-8 - footer_bytes, 2)
        footer = _Structure(file.read(footer_bytes)).read()
        columns = _leaves(footer[2])
        for group in footer[4]:
            rows += group[3]
            for name, chunk in zip(columns, group[1], strict=True):
                if name in per_row:
                    _check_chunk(file, name, chunk, group[3] * per_row[name][0], per_row[name][1])
    return rows


def _leaves(schema: list[Fields]) -> list[str]:
    """Returns for each chunk of a row group the column that it is part of: a schema lists a tree from its root."""
    left, names, top = list[int](), list[str](), ""
    for element in schema[1:]:
        children = element.get(5, 0)
        if left:
            left[-1] -= 1
        else:
            top = element[4].decode()
        if children:
            left.append(children)
        else:
            names.append(top)
        while left and not left[-1]:
            left.pop()
    return names


def _check_chunk(file: BinaryIO, name: str, chunk: Fields, expected: int, largest: int) -> None:
    """Walks the pages of a chunk as the reader does, until they hold the values that the footer states."""
    if 1 in chunk:
        raise ValueError(f"column {name!r} names another file")
    stated = chunk[3]
    # A dictionary stands before the data.
    place, seen = min(stated[9], stated.get(11) or stated[9]), 0
    end = place + stated[7]
    while seen < stated[5] and place < end:
        file.seek(place)
        header = _Structure(file.read(_LONGEST_HEADER))
        page = header.read()
        count = page[_HEADERS[page[1]]][1] if page[1] in _HEADERS else 0
        if not (0 <= count <= expected and 0 <= page[2] <= largest * expected + _PER_PAGE and page[3] >= 0):
            raise OtherSizeError(name)
        seen += 0 if page[1] == _DICTIONARY else count
        place += header.place + page[3]
    if not seen == stated[5] == expected:
        raise OtherSizeError(name)


class _Structure:
    """A structure of Thrift's compact protocol; `place` is where the reading is."""

    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    def read(self, levels: int = _MOST_LEVELS) -> Fields:
        """Returns the values by the numbers of their fields; each must stand there once."""
        found, field = Fields(), 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._number()
            if field in found or not levels:
                raise ValueError("a field stands twice, or the structure is nested too deep")
            found[field] = head & 15 == 1 if head & 15 < 3 else self._value(head & 15, levels - 1)
        return found

    def _value(self, kind: int, levels: int) -> Any:
        if kind < 4:  # in a list, true and false take a byte too
            return self._byte()
        if kind < 7:
            return self._number()
        if kind == 7:
            return self._bytes(8)
        if kind == 8:
            return self._bytes(self._varint())
        if kind == 9:
            head = self._byte()
            size = self._varint() if head >> 4 == 15 else head >> 4
            return [self._value(head & 15, levels) for _ in range(size)]
        if kind == 12:
            return self.read(levels)
        raise ValueError(f"parquet has no values of kind {kind}")

    def _byte(self) -> int:
        self.place += 1
        return self.content[self.place - 1]

    def _bytes(self, size: int) -> bytes:
        self.place += size
        if self.place > len(self.content):
            raise ValueError("it ends within a value")
        return self.content[self.place - size : self.place]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def _number(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

"""What the footer of a parquet file says of its columns, read by ourselves.

pyarrow ends the whole process when it is asked for a column in a damaged footer (`RowGroupMetaData.column` and
`.statistics` of 26.0), which a file from outside must not bring about. Source: the Thrift definition of Apache Parquet
(`parquet.thrift`) in Thrift's compact protocol.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

# The numbers of physical types.
PHYSICAL = {"int64": 2, "float32": 4}

_MAGIC = b"PAR1"
_MOST_BYTES = 8 * 2**20  # of a footer, which becomes much larger in memory; ours have some KiB, and the class names
_BOOLEANS, _INTEGERS = (1, 2), (4, 5, 6)
_BYTES, _LISTS, _MAP, _STRUCT = 8, (9, 10), 11, 12
_PLAIN = {3: 1, 7: 8, 13: 16}  # bytes of values of one length
# The fields that are kept: of the file its row groups (4), of these columns (1) and rows (3), of a column its
# metadata (3), of this the type (1), path (3), number of values (5) and statistics (12) with the nulls (3).
_KEPT: dict[int, Any] = {4: {1: {3: {1: {}, 3: {}, 5: {}, 12: {3: {}}}}, 3: {}}}


class ColumnChunk(NamedTuple):
    """The values of a column in a row group, those of a list each counted.

    Attributes:
        column: Name of the column, without those of its parts.
        physical: Number of the physical type of the values.
        values: How many there are, nulls and empty lists included.
        nulls: How many of them are stated to be null.
    """

    column: str
    physical: int
    values: int
    nulls: int


class RowGroup(NamedTuple):
    """The rows that are stored together.

    Attributes:
        rows: Their number.
        chunks: Their columns; of a column of several parts, each part.
    """

    rows: int
    chunks: list[ColumnChunk]


def read_footer(path: Path) -> list[RowGroup]:
    """Reads what a parquet file says of its row groups; nothing of it is checked against the rest of the file.

    Raises:
        OSError: The file cannot be read.
        Exception: The file has no such footer. Of several kinds, since fields may be missing or of another type.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        tail = file.read()
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MAGIC or not 0 < length <= size - 12:
            raise ValueError("it is no parquet file, or ends too early")
        if length > _MOST_BYTES:
            raise ValueError(f"its footer must be of at most {_MOST_BYTES} bytes, got {length}")
        file.seek(size - 8 - length)
        fields = _Compact(file.read(length)).struct(_KEPT)
    return [RowGroup(int(group[3]), [_chunk(chunk[3]) for chunk in group[1]]) for group in fields[4]]


def _chunk(fields: dict[int, Any]) -> ColumnChunk:
    column = fields[3][0].decode()
    return ColumnChunk(column, int(fields[1]), int(fields[5]), int(fields.get(12, {}).get(3, 0)))


class _Compact:
    """Reads values of Thrift's compact protocol; those that are not to be kept are passed over, and read as None."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def struct(self, kept: dict[int, Any] | None) -> dict[int, Any]:
        fields, number = {}, 0
        while header := self._take(1)[0]:
            step, kind = divmod(header, 16)
            number = number + step if step else self._integer()
            inner = None if kept is None else kept.get(number)
            # The kind of a boolean is its value.
            value = kind == 1 if kind in _BOOLEANS else self._value(kind, inner)
            if inner is not None:
                fields[number] = value
        return fields

    def _value(self, kind: int, kept: dict[int, Any] | None) -> Any:
        if kind in _INTEGERS:
            return self._integer()
        if kind == _STRUCT:
            return self.struct(kept)
        if kind == _BYTES:
            return self._take(self._unsigned())
        if kind in _LISTS:
            return self._list(kept)
        if kind == _MAP:
            return self._map()
        if kind in _PLAIN:
            return self._take(_PLAIN[kind])
        raise ValueError(f"its footer holds a value of the unknown kind {kind}")

    def _list(self, kept: dict[int, Any] | None) -> list[Any]:
        count, kind = divmod(self._take(1)[0], 16)
        count = self._unsigned() if count == 15 else count
        values = []
        for _ in range(count):
            value = self._take(1) if kind in _BOOLEANS else self._value(kind, kept)
            if kept is not None:
                values.append(value)
        return values

    def _map(self) -> None:
        count = self._unsigned()
        kinds = divmod(self._take(1)[0], 16) if count else ()
        for _ in range(count):
            for kind in kinds:
                self._take(1) if kind in _BOOLEANS else self._value(kind, None)

    def _integer(self) -> int:
        number = self._unsigned()
        return number >> 1 ^ -(number & 1)

    def _unsigned(self) -> int:
        number = 0
        for shift in range(0, 70, 7):
            byte = self._take(1)[0]
            number |= (byte & 127) << shift
            if byte < 128:
                return number
        raise ValueError("its footer holds a number of more than 64 bits")

    def _take(self, count: int) -> bytes:
        part = self.data[self.place : self.place + count]
        self.place += count
        if len(part) < count:
            raise ValueError("its footer ends too early")
        return part

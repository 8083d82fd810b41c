"""The tensors of a distilled set as parquet files, written, checked and read a few MiB at a time.

A set from outside is not trusted with sizes: what its record states must agree with the rows and types of its files
before anything is decoded, with the first piece before memory is taken for all, and then with each piece.
"""

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ssdd_hub.errors import InputError
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.plain_files import require_plain
from ssdd_hub.record import PARQUET_FILE, PARQUET_GLOB, REMEDY
from ssdd_hub.record_schema import PICTURES, Stated, column_of
from ssdd_hub.sets.folder import to_raw
from ssdd_hub.sets.parquet_pages import OtherSizeError, count_rows
from ssdd_hub.sets.preview import from_png, has_few_levels, to_exact_picture, to_picture, to_png

# Most bytes of values, before compression, of a file and of a row group; one row at least, however large.
SHARD_BYTES = 256 * 2**20
ROW_GROUP_BYTES = 16 * 2**20

LIMIT = "SSDD_HUB_MAX_SET_GIB"
"""The environment variable with the most GiB of a set, of which an image with its targets may take a 64th."""
_MOST_GIB, _MOST_ROWS = 16.0, 64

_LARGEST_FOOTER = 8 * 2**20  # bytes, which become many more in memory; ours have some KiB, and the class names
_LARGEST_PICTURE = 2**16  # bytes of a PNG file beside its pixels
_READ_BYTES = 2**20  # read ahead in each column; by default pyarrow holds whole row groups
_SIGN = np.uint8(128)
_LISTS = (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)
_LIST_TYPES = (pa.ListType, pa.LargeListType, pa.FixedSizeListType)

Values = npt.NDArray[Any]


def write_tensors(
    folder: Path, tensors: Mapping[str, Tensor], pixel_space: PixelSpace, label_names: Sequence[str] | None = None
) -> None:
    """Writes the parquet files of stored tensors.

    Images of type uint8 are its pictures; others are a column of their own, beside preview pictures in which pixels
    outside `[0, 1]` are clipped. Numbers of type int8 are written as uint8, larger by 128: parquet spreads them over
    four bytes, three of which are then 0 and, apart from the others, compress to nothing.
    """
    # Imported here, since reading needs none of it and it takes seconds.
    from datasets import Features

    features = Features(_describe_columns(tensors, label_names))
    # The bytes of a row: id, preview and tensors; a preview counts as its pixels, which PNG seldom makes more of.
    pictures = tensors["images"][0].numel() if "images" in tensors else 0
    row = 8 + pictures + sum(part[0].numel() * part.element_size() for part in tensors.values())
    shards, group = _cuts(0, len(tensors["targets"]), SHARD_BYTES // row), ROW_GROUP_BYTES // row
    few = "images" in tensors and has_few_levels(tensors["images"])
    level = 19 if few or any(part.dtype == torch.int8 for part in tensors.values()) else None
    split = [
        column_of(name, "int8") + ".list.element" * (part.ndim - 1)
        for name, part in tensors.items()
        if part.dtype == torch.int8
    ]
    (folder / "data").mkdir()
    for number, (first, last) in enumerate(shards):
        path = folder / PARQUET_FILE.format(number, len(shards))
        # The schema carries the features, so `load_dataset` needs no more than these files.
        packing: dict[str, Any] = {"compression": "zstd", "compression_level": level, "use_dictionary": False}
        with pq.ParquetWriter(path, features.arrow_schema, use_byte_stream_split=split, **packing) as writer:
            for start, stop in _cuts(first, last, group):
                table = _make_table(tensors, slice(start, stop), pixel_space, features, packed=not few)
                writer.write_table(table, row_group_size=stop - start)


def _describe_columns(tensors: Mapping[str, Tensor], label_names: Sequence[str] | None) -> dict[str, Any]:
    from datasets import Array3D, ClassLabel, Image, List, Value

    features = {"id": Value("int64"), **({PICTURES: Image()} if "images" in tensors else {})}
    for name, tensor in tensors.items():
        column = column_of(name, _type_of(tensor.dtype))
        dtype = _written_type(_type_of(tensor.dtype))
        if name == "images" and column != PICTURES:
            features[column] = Array3D(shape=tuple(tensor.shape[1:]), dtype=dtype)
        elif name != "images":
            features[column] = Value(dtype)
            for length in reversed(tensor.shape[1:]):
                features[column] = List(features[column], length=length)
    if label_names:
        features["label"] = ClassLabel(names=list(label_names))
    return features


def _cuts(first: int, last: int, step: int) -> list[tuple[int, int]]:
    """Cuts the rows `[first, last)` into pieces of `step` rows, at least one."""
    return list(pairwise([*range(first, last, max(1, step)), last]))


def _make_table(
    tensors: Mapping[str, Tensor], rows: slice, pixel_space: PixelSpace, features: Any, packed: bool
) -> pa.Table:
    from datasets import Dataset

    columns: dict[str, Any] = {"id": range(rows.start, rows.stop)}
    for name, tensor in tensors.items():
        values = tensor[rows].cpu().numpy()
        values = values.view(np.uint8) ^ _SIGN if values.dtype == np.int8 else values
        columns[column_of(name, _type_of(tensor.dtype))] = values
    if "images" in tensors:
        images = tensors["images"][rows]
        exact = images.dtype == torch.uint8
        pictures = map(to_exact_picture, images) if exact else map(to_picture, pixel_space.denormalise(images))
        columns[PICTURES] = [{"bytes": to_png(picture, packed), "path": None} for picture in pictures]
    return Dataset.from_dict({name: columns[name] for name in features}, features=features).data.table


def _type_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _written_type(dtype: str) -> str:
    return "uint8" if dtype == "int8" else dtype


def iter_tensors(
    folder: Path, stated: Mapping[str, Stated], shown: Mapping[str, Stated] | None = None
) -> Iterator[dict[str, Values]]:
    """Yields the next rows of each stated tensor, `(m, ...)`, writable, about 16 MiB at a time, files in their order.

    The sha256 is compared last: what was yielded before can be trusted only when the iteration has ended. `shown` are
    the tensors once they are decoded, where they take more memory then. Raises an `InputError` for a missing or
    damaged file or column, and a tensor that is not the one stated or too large.
    """
    columns = {name: column_of(name, entry.dtype) for name, entry in stated.items()}
    rows = max(1, ROW_GROUP_BYTES // sum(_bytes_of(entry, entry.shape[1:]) for entry in stated.values()))
    hashes = {name: hashlib.sha256() for name in stated}
    left = {name: entry.shape[0] for name, entry in stated.items()}
    paths = _check_shards(folder, stated)
    _check_sizes(folder, shown or stated)
    for path in paths:
        # `ParquetFile` reads this very file, where `read_table` would take folders named `key=value` for columns.
        with _reporting(folder, path), pq.ParquetFile(path, buffer_size=_READ_BYTES, pre_buffer=False) as file:
            for batch in file.iter_batches(rows, columns=list(columns.values())):
                part = {}
                for name, column in columns.items():
                    left[name] -= batch.num_rows
                    read = _decode_pictures if column == PICTURES else _flatten
                    part[name] = read(batch[column], name, stated[name], left[name])
                    hashes[name].update(to_raw(part[name]))
                yield part
    for name, entry in stated.items():
        if left[name]:
            raise _misfit(name, entry)
        if hashes[name].hexdigest() != entry.sha256:
            raise InputError(f"the {name} are not those that were saved, their sha256 differs: {REMEDY}")


def read_tensors(
    folder: Path, stated: Mapping[str, Stated], shown: Mapping[str, Stated] | None = None
) -> dict[str, Tensor]:
    """Reads tensors as `iter_tensors` does; what does not fit into memory is an `InputError` too."""
    parts = iter_tensors(folder, stated, shown)
    # A piece before memory is taken for all, since the files state their rows, and of these the sizes not always.
    first = list(islice(parts, 1))
    tensors, start = _allocate(folder, stated), 0
    for part in chain(first, parts):
        stop = start + len(next(iter(part.values())))
        for name, values in part.items():
            tensors[name][start:stop] = torch.from_numpy(values)
        start = stop
    return tensors


def _allocate(folder: Path, stated: Mapping[str, Stated]) -> dict[str, Tensor]:
    try:
        return {name: torch.empty(entry.shape, dtype=getattr(torch, entry.dtype)) for name, entry in stated.items()}
    except (MemoryError, OverflowError, RuntimeError, TypeError) as error:
        needed = sum(_bytes_of(entry, entry.shape) for entry in stated.values()) / 2**30
        raise InputError(
            f"the tensors of {folder} need {needed:.1f} GiB of memory, more than can be had: take a machine with more"
        ) from error


def _check_sizes(folder: Path, stated: Mapping[str, Stated]) -> None:
    """Refuses sizes that are only large: pixels of one value pack gigabytes into a few kilobytes."""
    try:
        most = float(os.environ.get(LIMIT, _MOST_GIB)) * 2**30
    except ValueError as error:
        raise InputError(f"{LIMIT} must be a number of GiB, got {os.environ[LIMIT]!r}") from error
    whole = sum(_bytes_of(entry, entry.shape) for entry in stated.values())
    row = sum(_bytes_of(entry, entry.shape[1:]) for entry in stated.values())
    # `not <=`, since NaN compares as false.
    if not (whole <= most and row <= most / _MOST_ROWS):
        raise InputError(
            f"the tensors of {folder} take {whole / 2**30:.2f} GiB, {row / 2**30:.2f} of them an image, and at most "
            f"{most / 2**30:g} and {most / _MOST_ROWS / 2**30:g} are read: if you trust the set, and the memory is "
            f"there, set {LIMIT} to a larger number of GiB"
        )


def _bytes_of(stated: Stated, shape: Sequence[int]) -> int:
    return math.prod(shape) * np.dtype(stated.dtype).itemsize


def _find_shards(folder: Path) -> list[Path]:
    require_plain(folder, ["data"])
    paths = sorted(folder.glob(PARQUET_GLOB))
    names = [path.relative_to(folder).as_posix() for path in paths]
    require_plain(folder, names)
    if not paths:
        raise InputError(f"{folder} has no {PARQUET_GLOB}: {REMEDY}")
    if names != [PARQUET_FILE.format(number, len(paths)) for number in range(len(paths))]:
        raise InputError(
            f"{folder} must hold each of the files train-XXXXX-of-NNNNN.parquet of one set once; of the {len(paths)} "
            f"in data, from {paths[0].name} to {paths[-1].name}, some are missing or not of this set: {REMEDY}"
        )
    return paths


@contextmanager
def _reporting(folder: Path, path: Path) -> Iterator[None]:
    """Reports whatever goes wrong as damage of the file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        # Of any kind, since extension types of `datasets`, once imported, read their damaged description.
        raise InputError(f"the parquet files of {folder} are damaged ({path.name}: {error}): {REMEDY}") from error


def _check_shards(folder: Path, stated: Mapping[str, Stated]) -> list[Path]:
    """Returns the files in their order, when they state the rows and types that are stated; nothing is decoded."""
    paths, rows = _find_shards(folder), 0
    for path in paths:
        with _reporting(folder, path):
            with path.open("rb") as raw:
                raw.seek(-8, os.SEEK_END)
                size = int.from_bytes(raw.read(4), "little")
            if size > _LARGEST_FOOTER:
                raise ValueError(f"its footer must be of at most {_LARGEST_FOOTER} bytes, got {size}")
            with pq.ParquetFile(path) as file:
                # Neither `.column()` nor `.statistics` of the metadata, which end the process where it is damaged
                # (pyarrow 26.0); tests/sets/test_damaged_footers.py shows that these calls do not.
                stated_rows = file.metadata.num_rows
                for name, entry in stated.items():
                    _check_type(folder, file.schema_arrow, name, entry)
            columns = {name: column_of(name, entry.dtype) for name, entry in stated.items()}
            per_row = {columns[name]: _values_of(columns[name], entry.shape[1:]) for name, entry in stated.items()}
            try:
                found = count_rows(path, size, per_row)
            except OtherSizeError as error:
                name = next(name for name in stated if columns[name] == str(error))
                raise _misfit(name, stated[name]) from error
            if found != stated_rows:
                raise ValueError("its row groups have not the rows that it states")
            rows += stated_rows
    for name, entry in stated.items():
        if rows != entry.shape[0]:
            raise _misfit(name, entry)
    return paths


def _values_of(column: str, shape: Sequence[int]) -> tuple[int, int]:
    """Returns how many values a row of a column has, and the most bytes of one with the levels of its lists."""
    return (1, _LARGEST_PICTURE + 2 * math.prod(shape)) if column == PICTURES else (math.prod(shape), 16)


def _check_type(folder: Path, schema: pa.Schema, name: str, stated: Stated) -> None:
    column, dtype = column_of(name, stated.dtype), stated.dtype
    if schema.names.count(column) != 1:
        raise InputError(f"the parquet files of {folder} lack the column {column!r}, or have it twice: {REMEDY}")
    kind = schema.field(column).type
    if column == PICTURES:
        if not (isinstance(kind, pa.StructType) and kind.get_field_index("bytes") >= 0):
            raise InputError(f"column {column!r} of {folder} does not hold pictures: {REMEDY}")
        return
    # `datasets`, once imported, makes pyarrow wrap nested lists in its own extension type.
    kind, sizes = getattr(kind, "storage_type", kind), []
    while isinstance(kind, _LIST_TYPES):
        sizes.append(kind.list_size if isinstance(kind, pa.FixedSizeListType) else None)
        kind = kind.value_type
    written = _written_type(dtype)
    if kind != pa.type_for_alias(written):
        raise InputError(f"column {column!r} of {folder} does not hold plain numbers of type {written}: {REMEDY}")
    wanted = stated.shape[1:]
    if len(sizes) != len(wanted) or any(size not in (None, want) for size, want in zip(sizes, wanted, strict=True)):
        raise _misfit(name, stated)


def _flatten(lists: pa.Array, name: str, stated: Stated, left: int) -> Values:
    """Returns the rows of a column as one array, when they are of the stated sizes and `left` more at least 0."""
    # `datasets`, once imported, makes pyarrow wrap nested lists in its own extension type.
    rows, values, fits = len(lists), getattr(lists, "storage", lists), left >= 0
    for size in stated.shape[1:]:
        fits = fits and isinstance(values, _LISTS) and not values.null_count
        if fits and isinstance(values, pa.FixedSizeListArray):
            fits = values.type.list_size == size
        elif fits:
            fits = bool((np.diff(values.offsets.to_numpy()) == size).all())
        values = values.flatten() if fits else values
    if not fits or values.null_count or values.type != pa.type_for_alias(_written_type(stated.dtype)):
        raise _misfit(name, stated)
    # A copy, since arrays of pyarrow cannot be written to.
    read = np.array(values.to_numpy(zero_copy_only=False)).reshape(rows, *stated.shape[1:])
    return (read ^ _SIGN).view(np.int8) if stated.dtype == "int8" else read


def _decode_pictures(pictures: pa.Array, name: str, stated: Stated, left: int) -> Values:
    """Returns pictures as one array, when each is a PNG of the stated size and `left` more rows at least 0."""
    parts = [from_png(entry, stated.shape[1:]) for entry in pictures.field("bytes").to_pylist()] if left >= 0 else []
    if left < 0 or any(part is None for part in parts):
        raise _misfit(name, stated)
    return np.stack([part for part in parts if part is not None])


def _misfit(name: str, stated: Stated) -> InputError:
    return InputError(
        f"column {column_of(name, stated.dtype)!r} does not hold {name} of the stated shape {stated.shape}: {REMEDY}"
    )

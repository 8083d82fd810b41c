"""The decoded rows of a stream on the disk, which a second pass reads in place of the stream."""

import itertools
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from ssdd_hub.data.decode import CorruptImageError
from ssdd_hub.data.pixel_files import INDEX_FILE, PixelFile, open_folder
from ssdd_hub.errors import InputError
from ssdd_hub.files import atomic_path

_MOST_ROWS = 2**32

_Row = Callable[[], Tensor]


class StreamFiles:
    """The decoded rows of a stream in a folder: each process appends those that it decodes to a file of its own.

    Once all rows are there, the stream itself is not read any more.

    Args:
        cache: Holds a folder for each `key`.
        key: All that the pixels depend on, as JSON.
        shape: `(C, H, W)`.

    Raises:
        InputError: The folder holds something else, or cannot be written.
    """

    def __init__(self, cache: Path, key: dict[str, Any], shape: tuple[int, int, int]) -> None:
        self._folder, self._key = open_folder(cache, key)
        self._shape = shape
        self._own: tuple[PixelFile, FileLock] | None = None

    def rows(self, stream: Callable[[], Iterator[_Row]]) -> Iterator[_Row]:
        """Yields for each row of the stream a function that returns its pixels, or raises its `CorruptImageError`.

        What such a function decodes is kept.
        """
        files = [PixelFile(path, self._shape) for path in sorted(self._folder.glob("rows-*.pixels"))]
        skipped = {row: reason for file in files for row, reason in file.skipped.items()}
        count = max((int(file.rows.max()) + 1 for file in files if len(file.rows)), default=0)
        if count > _MOST_ROWS:
            raise InputError(f"{self._folder} does not hold the decoded rows of a stream: remove it")
        numbers, places = np.full(count, -1, np.int16), np.zeros(count, np.int64)
        for number, file in enumerate(files):
            numbers[file.rows], places[file.rows] = number, np.arange(len(file.rows))

        def known(row: int) -> _Row | None:
            if row < count and numbers[row] >= 0:
                return partial(self._read, files[numbers[row]], int(places[row]))
            return partial(_refuse, skipped[row]) if row in skipped else None

        total = self._total()
        if total is not None and all(known(row) for row in range(total)):
            yield from (found for row in range(total) if (found := known(row)))
            return
        row = -1
        for row, decode in enumerate(stream()):
            yield known(row) or partial(self._decode, row, decode)
        if total is None:
            with atomic_path(self._folder / INDEX_FILE) as temporary:
                temporary.write_text(json.dumps({"key": self._key, "num_rows": row + 1}) + "\n", encoding="utf-8")

    def _total(self) -> int | None:
        path = self._folder / INDEX_FILE
        if not path.exists():
            return None
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            if index["key"] != self._key:
                raise ValueError(f"{INDEX_FILE} is of others")
            return int(index["num_rows"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self._folder} does not hold the rows of this stream ({error}): remove it") from error

    def _read(self, file: PixelFile, place: int) -> Tensor:
        return torch.from_numpy(file.read(place))

    def _decode(self, row: int, decode: _Row) -> Tensor:
        try:
            pixels = decode()
        except CorruptImageError as error:
            self._writer().skip(row, str(error))
            raise
        self._writer().append(row, pixels.numpy())
        return pixels

    def _writer(self) -> PixelFile:
        """Returns the first file that no other process writes."""
        for number in itertools.count() if self._own is None else ():
            lock = FileLock(self._folder / f".lock-{number}", thread_local=False)
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                lock.acquire(timeout=0)
            except Timeout:
                continue
            except (OSError, NotImplementedError) as error:
                raise InputError(
                    f"--data.cache {self._folder.parent} cannot be written or locked ({error}): choose another folder"
                ) from error
            file = PixelFile(self._folder / f"rows-{number:05d}.pixels", self._shape)
            file.keep(len(file.rows), file.skipped)
            self._own = file, lock
            break
        assert self._own is not None
        return self._own[0]


def _refuse(reason: str) -> Tensor:
    raise CorruptImageError(reason)

"""Decoded images in files, kept for later starts, which take no more than whole ones of the same source."""

import hashlib
import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import features
from torch import Tensor

from ssdd_hub.errors import InputError
from ssdd_hub.plain_files import require_plain_tree
from ssdd_hub.record import hash_json

INDEX_FILE = "index.json"
FORMAT_VERSION = 1
_RECORD = np.dtype([("row", "<i8"), ("digest", "V16")])


def open_folder(cache: Path, key: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Returns the folder in a cache of images that depend on `key`, and this key with what all images depend on.

    Raises:
        InputError: Something else than plain files is there.
    """
    decoder = f"Pillow {PIL.__version__}, libjpeg {features.version_codec('jpg')}"
    key = json.loads(json.dumps({**key, "format": FORMAT_VERSION, "decoder": decoder}))
    folder = cache / f"images-{hash_json(key)[:32]}"
    require_plain_tree(folder)
    return folder, key


def map_pixels(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Returns the images in a file, `shape`, uint8, as a map that nothing must write to."""
    with warnings.catch_warnings():
        # A map that could be written would count as memory, which systems refuse where they have less.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.memmap(path, np.uint8, "r", shape=shape))


class PixelFile:
    """Images of one shape, one after another in a file; beside it a record of each: its row, and a hash of its pixels.

    Rows that are left out are in a third file, with the reason. A process that is killed leaves whole records; on a
    machine that stops, pixels may be lost that records tell of, which their hashes show.

    Attributes:
        rows: The row of each image, `(n,)`, as recorded when the file was opened.
        skipped: Why rows are left out, by row.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        self.path, self._shape, self._size = path, shape, math.prod(shape)
        self._rows, self._skipped = path.with_suffix(".rows"), path.with_suffix(".skipped")
        records = np.fromfile(self._rows, _RECORD) if self._rows.exists() else np.empty(0, _RECORD)
        records = records[: path.stat().st_size // self._size if path.exists() else 0]
        self.rows, self._digests = records["row"], records["digest"]
        self.skipped = dict[int, str]()
        for line in self._skipped.read_bytes().splitlines() if self._skipped.exists() else []:
            try:
                row, reason = json.loads(line)
                self.skipped[int(row)] = str(reason)
            except (ValueError, TypeError):
                break  # torn by a kill, so the last one

    def read(self, place: int) -> Any:
        """Returns the pixels of an image that was there when the file was opened, `(C, H, W)`.

        Raises:
            InputError: They have another hash than when they were written.
        """
        pixels = np.empty(self._shape, np.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(place * self._size)
            file.readinto(pixels.data.cast("B"))
        if _digest(pixels) != bytes(self._digests[place]):
            raise InputError(f"{self.path} is damaged at image {place}: remove {self.path.parent}")
        return pixels

    def append(self, row: int, pixels: Any) -> None:
        """Writes an image and then its record."""
        pixels = np.ascontiguousarray(pixels)
        self._write(self.path, pixels.tobytes())
        self._write(self._rows, np.array([(row, _digest(pixels))], _RECORD).tobytes())

    def skip(self, row: int, reason: str) -> None:
        """Records that a row is left out."""
        self._write(self._skipped, json.dumps([row, reason]).encode() + b"\n")

    def keep(self, count: int, skipped: dict[int, str]) -> None:
        """Drops all but the first images and these rows left out; what is written follows them."""
        for path, size in ((self.path, self._size), (self._rows, _RECORD.itemsize), (self._skipped, 0)):
            path.touch()
            os.truncate(path, count * size)
        for row, reason in skipped.items():
            self.skip(row, reason)

    def _write(self, path: Path, content: bytes) -> None:
        try:
            with path.open("ab", buffering=0) as file:
                if file.write(content) < len(content):
                    raise OSError("the disk is full")
        except OSError as error:
            raise InputError(
                f"{path} cannot be written ({error}): make room, or choose another --data.cache"
            ) from error


def _digest(pixels: Any) -> bytes:
    return hashlib.sha256(pixels.data).digest()[:16]

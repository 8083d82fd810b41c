"""The decoded images of a bank on the disk: written once, in order, and mapped by every later start."""

import json
import logging
import math
import re
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from ssdd_hub.data.decode import LARGEST_SIZE, PixelStore, fingerprint_pixels, require_room
from ssdd_hub.data.pixel_files import INDEX_FILE, PixelFile, map_pixels, open_folder
from ssdd_hub.errors import InputError
from ssdd_hub.files import atomic_path

_LOG = logging.getLogger(__name__)


class DiskStore(PixelStore):
    """A `PixelStore` in a folder, which outlives the process: later starts map the file that the first one wrote.

    One process writes, and others wait for it. A write that was interrupted goes on after the last whole image. The
    index, written last, has the fingerprint of the pixels, which every start compares.

    Args:
        cache: Holds a folder for each `key`.
        key: All that the pixels depend on, as JSON.
        capacity: As the others, of `PixelStore`.
        image_size: See there.
        mode: See there.

    Raises:
        InputError: The folder holds something else or a damaged cache, or has none and cannot be written.
    """

    def __init__(self, cache: Path, key: dict[str, Any], capacity: int, image_size: int | None, mode: str) -> None:
        super().__init__(capacity, image_size, mode, budget=0)
        self._folder, self._key = open_folder(cache, key)
        self._file: PixelFile | None = None
        self._lock = FileLock(self._folder / ".lock", thread_local=False)
        self._index = self._read_index()
        if self._index is None:
            self._take()
            # Another process may have written it meanwhile.
            self._index = self._read_index()
            if self._index is None:
                self._resume()

    def skip(self, reason: str) -> None:
        """See `PixelStore.skip`."""
        # Before the first image there is no file, as its size is not known; it then begins with these.
        if self._file is not None:
            self._file.skip(self.num_rows, reason)
        super().skip(reason)

    def close(self) -> None:
        """See `PixelStore.close`."""
        self._lock.release()

    def finish(self) -> tuple[Tensor, str]:
        """See `PixelStore.finish`; the pixels are mapped, and their pages are the system's to drop."""
        pixels = self.pixels()
        fingerprint = fingerprint_pixels(pixels)
        if self._index is None:
            self._write_index(fingerprint)
        elif fingerprint != self._index["fingerprint"]:
            raise self._damaged("the sha256 of the pixels is not the one that was written")
        return pixels, fingerprint

    def pixels(self) -> Tensor:
        """See `PixelStore.pixels`."""
        return map_pixels(self._path, (self.count, *self._shape))

    @property
    def _path(self) -> Path:
        return self._folder / f"{self.mode}-{self.image_size}.pixels"

    def _take(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                _LOG.info("another process decodes the images into %s: waiting for it", self._folder)
                self._lock.acquire()
        except (OSError, NotImplementedError) as error:
            raise InputError(
                f"--data.cache {self._folder.parent} does not hold the decoded images and cannot be written or locked "
                f"({error}): choose another folder"
            ) from error

    def _read_index(self) -> dict[str, Any] | None:
        path = self._folder / INDEX_FILE
        if not path.exists():
            return None
        try:
            index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if index["key"] != self._key:
                raise ValueError(f"{INDEX_FILE} is of others")
            self.mode, self.image_size, self.count = (index[name] for name in ("mode", "image_size", "num_images"))
            self.skipped = {int(row): str(reason) for row, reason in index["skipped"].items()}
            size = self.count * math.prod(self._shape)
            if self.num_rows != self._capacity or not 0 < size == self._path.stat().st_size:
                raise ValueError(f"{self._path.name} has not the size that {INDEX_FILE} states")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(error) from error
        return index

    def _write_index(self, fingerprint: str) -> None:
        facts = {"mode": self.mode, "image_size": self.image_size, "num_images": self.count, "skipped": self.skipped}
        with atomic_path(self._folder / INDEX_FILE) as temporary:
            text = json.dumps({"key": self._key, **facts, "fingerprint": fingerprint})
            temporary.write_text(text + "\n", encoding="utf-8")
        for path in self._folder.iterdir():
            if path.suffix in (".rows", ".skipped", ".pixels") and path != self._path:
                path.unlink()

    def _damaged(self, why: object) -> InputError:
        return InputError(
            f"{self._folder} does not hold the decoded images, whole ({why}): remove it, and they are decoded again"
        )

    def _resume(self) -> None:
        """Opens what an interrupted process has left, up to the first row that is missing or damaged."""
        for mode in ("rgb", "grey") if self._auto else (self.mode,):
            sizes = [re.fullmatch(rf"{mode}-(\d{{1,4}})\.pixels", path.name) for path in self._folder.iterdir()]
            size = next((int(found[1]) for found in sizes if found and int(found[1]) <= LARGEST_SIZE), None)
            if size is None or self.image_size not in (0, size):
                continue
            self.mode, self.image_size = mode, size
            self._file = file = PixelFile(self._path, self._shape)
            while self.num_rows < self._capacity:
                row = self.num_rows
                if row in file.skipped:
                    self.skipped[row] = file.skipped[row]
                elif self.count < len(file.rows) and file.rows[self.count] == row and _is_sound(file, self.count):
                    self.count += 1
                else:
                    break
            file.keep(self.count, self.skipped)
            return

    def _become_colour(self) -> None:
        grey, self._file, self.mode = self._file, None, "rgb"
        if grey is not None:
            # Opened again, for its records to be those of now.
            grey = PixelFile(grey.path, (1, *self._shape[1:]))
            for place, row in enumerate(grey.rows):
                self._write(int(row), grey.read(place).repeat(3, 0))

    def _put(self, pixels: Any) -> None:
        self._write(self.num_rows, pixels)
        self.count += 1

    def _write(self, row: int, pixels: Any) -> None:
        if self._file is None:
            require_room(self._capacity * math.prod(self._shape), self._folder, "another --data.cache")
            self._file = PixelFile(self._path, self._shape)
            self._file.keep(0, self.skipped)
        self._file.append(row, pixels)


def _is_sound(file: PixelFile, place: int) -> bool:
    try:
        file.read(place)
    except InputError:
        return False
    return True

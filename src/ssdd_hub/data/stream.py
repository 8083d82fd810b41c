"""Images read once and in their order, from datasets that are larger than memory or not even downloaded."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from ssdd_hub.data.bank import DataSettings, refuse_corrupt
from ssdd_hub.data.columns import suggest
from ssdd_hub.data.decode import CHANNELS, PILLOW_MODES, CorruptImageError, PixelStore, decode_image, fit_square
from ssdd_hub.data.sources import MISTAKES, DatasetSource
from ssdd_hub.errors import InputError
from ssdd_hub.record import hash_json, shareable_name


class ImageStream:
    """The images of one split, decoded on the way to one size and mode.

    Size and mode are those of the settings, or else of the first image that can be decoded; nothing else is read
    before it is asked for. A folder written by `save_to_disk` is read from its memory map.

    Args:
        settings: Which images; `max_images` are the first ones.
        progress: Lets `datasets` show its progress bars.

    Attributes:
        image_size: Pixels a side, `H = W`.
        mode: `grey` or `rgb`.
        num_rows: Number of rows where the dataset states it; only for showing progress.
        fingerprint: Hash of all that the pixels depend on, since they cannot be hashed before they are read: the name,
            commit, ETag, or size and time of each file, the split, the column, and how images are decoded.

    Raises:
        InputError: The data cannot be found or used, or holds no image; the message says how to mend it.
    """

    def __init__(self, settings: DataSettings, progress: bool = True) -> None:
        self._settings = settings
        self._source = _StreamedSource(settings, progress)
        where, image = self._first_image()
        store = PixelStore(1, settings.image_size, settings.mode, budget=1 << 40)
        store.add(image, where)
        self.image_size, self.mode = store.image_size, store.mode
        known = [count for count in (self._source.length, settings.max_images) if count]
        self.num_rows = min(known) if self._source.length else None
        decided_by = {
            "files": self._source.versions,
            **{name: self._source.describe()[name] for name in ("config", "image_column")},
            **{name: getattr(settings, name) for name in ("split", "max_images", "on_corrupt", "image_size")},
            "mode": self.mode,
        }
        self.fingerprint = hash_json(decided_by)

    @property
    def num_channels(self) -> int:
        """Number of channels `C`, 1 or 3."""
        return CHANNELS[self.mode]

    @property
    def source(self) -> dict[str, Any]:
        """Where the images come from, for provenance: as in `ImageBank.source`, but for what only reading tells."""
        count = self._settings.max_images
        return {
            "name": shareable_name(self._settings.name),
            **self._source.describe(),
            "split": self._settings.split,
            "selection": f"the first {count}" if count else "all",
            "image_size": self.image_size,
            "mode": self.mode,
            "fingerprint": self.fingerprint,
        }

    def rows(self) -> Iterator[Callable[[], Tensor]]:
        """Yields for each row what decodes its image to `(C, H, W)`, uint8, when it is called.

        What is yielded raises `CorruptImageError` for an image that is to be skipped, and `InputError` for one that is
        refused: one that cannot be decoded, or that the size or mode of the first image does not fit.
        """
        rows = itertools.islice(self._source.stream(), self._settings.max_images)
        return (partial(self._pixels, where, read) for where, read in rows)

    def _first_image(self) -> tuple[str, Image.Image]:
        reasons = []
        for where, read in itertools.islice(self._source.stream(), self._settings.max_images):
            try:
                return where, self._decode(where, read)
            except CorruptImageError as error:
                reasons.append(str(error))
        name = f"the split '{self._settings.split}' of '{self._settings.name}'"
        if reasons:
            raise InputError(f"none of the {len(reasons)} images of {name} can be decoded; the first is {reasons[0]}")
        raise InputError(f"{name} holds no images")

    def _decode(self, where: str, read: Callable[[], bytes]) -> Image.Image:
        try:
            return decode_image(read(), self._settings.image_size)
        except CorruptImageError as error:
            if self._settings.on_corrupt == "refuse":
                raise refuse_corrupt(where, self._settings.split, self._settings.name, error) from error
            raise CorruptImageError(f"{where}: {error}") from error

    def _pixels(self, where: str, read: Callable[[], bytes]) -> Tensor:
        image = self._decode(where, read)
        if self._settings.image_size is None and image.size != (self.image_size, self.image_size):
            raise InputError(
                f"the first image has {self.image_size}x{self.image_size} pixels and the one at {where} "
                f"{image.width}x{image.height}: pass --data.image-size"
            )
        if self._settings.mode == "auto" and self.mode == "grey" and image.mode == "RGB":
            raise InputError(f"the first image is grey and the one at {where} has colours: pass --data.mode rgb")
        square = fit_square(image.convert(PILLOW_MODES[self.mode]), self.image_size)
        pixels = np.array(square).reshape(self.image_size, self.image_size, -1).transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(pixels))


class _StreamedSource(DatasetSource):
    """One split of a dataset, of which no more is downloaded than what is read."""

    def __init__(self, settings: DataSettings, progress: bool) -> None:
        super().__init__(
            *(settings.name, settings.config, settings.revision, settings.image_column, "none"),
            progress=progress,
            follow_links=settings.follow_links,
        )
        self._split = settings.split
        if self._split not in self.splits:
            raise InputError(
                f"the dataset '{self._name}' has no split '{self._split}' (--data.split); "
                f"{suggest(self._split, self.splits)}"
            )

    @cached_property
    def _table(self) -> Any:
        if self._builder is None:
            return self._tables[self._split]
        if hasattr(self._builder.config, "decode_num_threads"):
            # `datasets` would decode the images of folders on the Hub by itself, in any format that Pillow knows.
            self._builder.config.decode_num_threads = 0
        return self._builder.as_streaming_dataset(self._split)

    @cached_property
    def _columns(self) -> tuple[str, str | None]:
        return self._check_columns(self._table.features or {})

    def stream(self) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """Yields what `rows` does, for all rows in their order."""
        import datasets

        try:
            yield from self._encoded(self._table, itertools.count())
        except InputError:
            raise
        except (datasets.exceptions.DatasetsError, pa.ArrowException, *MISTAKES) as error:
            raise InputError(f"the dataset '{self._name}' cannot be read: {self._home.reason(error)}") from error

    @property
    def length(self) -> int | None:
        """The number of rows where it is known without reading them."""
        if self._builder is None:
            return len(self._table)
        stated = (self._builder.info.splits or {}).get(self._split)
        return stated.num_examples or None if stated else None

    @property
    def versions(self) -> list[list[str]]:
        """The files of the split, each with what changes when it does: its commit, its ETag, or its size and time."""
        if self._builder is None:
            return [self._version(str(path), ()) for path in sorted(Path(self._home.opened).rglob("*.arrow"))]
        by_split = self._builder.config.data_files or {}
        # Where the files of a split are not told apart, any of them may be its.
        parts = [by_split[self._split]] if self._split in by_split else by_split.values()
        # `datasets` leaves files out, but not what it knows of them, which it has of files on the Hub alone: a commit.
        return [
            self._version(file, origin)
            for files in parts
            for file, origin in zip(files, files.origin_metadata, strict=False)
        ]

    def _version(self, file: str, origin: Sequence[str]) -> list[str]:
        path = Path(file)
        if not path.is_file():
            return [file, *map(str, origin)]
        return [self._home.shown(file), str(path.stat().st_size), str(path.stat().st_mtime_ns)]

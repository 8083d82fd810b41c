"""Images read once and in their order, from datasets that are larger than memory or not even downloaded."""

import itertools
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from ssdd_hub.data.bank import DataSettings, cache_of, decode_row, none_decoded
from ssdd_hub.data.columns import require_split
from ssdd_hub.data.decode import CHANNELS, CorruptImageError, PixelStore, to_pixels
from ssdd_hub.data.left_out import refuse_left_out
from ssdd_hub.data.local_home import LocalHome
from ssdd_hub.data.sources import MISTAKES, NO_FILES, DatasetSource, kind_of
from ssdd_hub.data.stream_files import StreamFiles
from ssdd_hub.errors import InputError
from ssdd_hub.record import hash_json, shareable_name

_Item = TypeVar("_Item")


class ImageStream:
    """The images of one split, decoded on the way to one size and mode.

    Size and mode are those of the settings, or of the first image that can be decoded. The fingerprint is a hash of
    all that the pixels depend on: the name, commit, ETag, or size and time of each file, also of those that rows of a
    folder's tables name, the split, the column, and how images are decoded. `num_rows` is None where the dataset does
    not state it.
    """

    def __init__(self, settings: DataSettings, progress: bool = True) -> None:
        self._settings = settings
        self._source = _StreamedSource(settings, progress)
        if self._source.left_out and settings.on_corrupt == "refuse":
            raise refuse_left_out(settings.name, self._source.left_out)
        require_split(settings.name, self._source.splits, settings.split, "split")
        # Decides the size and the mode.
        self._store = PixelStore(1, settings.image_size, settings.mode, budget=1 << 40)
        where, image = self._first_image()
        self._store.add(image, where)
        self.image_size, self.mode = self._store.image_size, self._store.mode
        known = [count for count in (self._source.length, settings.max_images) if count]
        self.num_rows = min(known) if self._source.length else None
        decided_by = {
            "files": self._source.versions(settings.split),
            **self._source.rows_beside(settings.split),
            **{name: self._source.describe(settings.split)[name] for name in ("config", "image_column")},
            **{name: getattr(settings, name) for name in ("split", "max_images", "on_corrupt", "image_size")},
            "mode": self.mode,
        }
        self.fingerprint = hash_json(decided_by)
        self._files: StreamFiles | None = None
        if settings.cache:
            shape = (self.num_channels, self.image_size, self.image_size)
            self._files = StreamFiles(cache_of(settings, settings.cache), {"stream": self.fingerprint}, shape)

    @property
    def num_channels(self) -> int:
        """Number of channels `C`, 1 or 3."""
        return CHANNELS[self.mode]

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the images come from: `ImageBank.provenance` without the counts of images, known only after a pass."""
        count = self._settings.max_images
        return {
            "name": shareable_name(self._settings.name),
            **self._source.describe(self._settings.split),
            "split": self._settings.split,
            "selection": f"the first {count}" if count else "all",
            "image_size": self.image_size,
            "mode": self.mode,
            "fingerprint": self.fingerprint,
            **({"left_out": left_out[:5]} if (left_out := self._source.left_out) else {}),
        }

    def rows(self) -> Iterator[Callable[[], Tensor]]:
        """Yields for each row a function that decodes its image to `(C, H, W)`, uint8; see `decode_row`.

        With `DataSettings.cache`, images that were decoded before are read from there.
        """
        return self._files.rows(self._rows) if self._files else self._rows()

    def _rows(self) -> Iterator[Callable[[], Tensor]]:
        return (partial(self._pixels, where, read) for where, read in self._encoded())

    def _encoded(self) -> Iterator[tuple[str, Callable[[], bytes]]]:
        return itertools.islice(self._source.stream(), self._settings.max_images)

    def _first_image(self) -> tuple[str, Image.Image]:
        reasons = []
        for where, read in self._encoded():
            try:
                return where, self._decode(where, read)
            except CorruptImageError as error:
                reasons.append(str(error))
        if reasons:
            raise none_decoded(self._settings, self._settings.split, reasons)
        raise InputError(f"the split '{self._settings.split}' of '{self._settings.name}' holds no images")

    def _decode(self, where: str, read: Callable[[], bytes]) -> Image.Image:
        return decode_row(self._settings, self._settings.split, where, read, self._settings.image_size)

    def _pixels(self, where: str, read: Callable[[], bytes]) -> Tensor:
        image = self._decode(where, read)
        self._store.check_size(image, where)
        if self._settings.mode == "auto" and self.mode == "grey" and image.mode == "RGB":
            raise InputError(f"the first image is grey and the one at {where} has colours: pass --data.mode rgb")
        return torch.from_numpy(np.ascontiguousarray(to_pixels(image, self.mode, self.image_size)))


class _StreamedSource(DatasetSource):
    """One split of a dataset, of which no more is downloaded than what is read."""

    def __init__(self, settings: DataSettings, progress: bool) -> None:
        place = (settings.name, settings.config, settings.revision)
        super().__init__(*place, settings.image_column, "none", progress, settings.follow_links)
        self._split = settings.split

    def _table(self, split: str) -> Any:
        if self._builder is None:
            return self._tables[split]
        if hasattr(self._builder.config, "decode_num_threads"):
            # `datasets` would decode the images of folders on the Hub by itself, in any format that Pillow knows.
            self._builder.config.decode_num_threads = 0
        return self._builder.as_streaming_dataset(split)

    @cached_property
    def _streamed(self) -> Any:
        return self._table(self._split)

    def stream(self) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """Yields as `rows` does, for all rows in their order."""
        return self._readable(lambda: self._encoded(self._streamed, itertools.count()))

    def _paths(self) -> Iterator[str]:
        return self._readable(super()._paths)

    def _readable(self, items: Callable[[], Iterator[_Item]]) -> Iterator[_Item]:
        """Turns errors of `datasets` into those of the user's input."""
        import datasets

        try:
            yield from items()
        except InputError:
            raise
        except (datasets.exceptions.DatasetsError, pa.ArrowException, *MISTAKES) as error:
            raise self._unreadable(error) from error

    def rows_beside(self, split: str) -> dict[str, str]:
        """Returns `versions_of_rows` where rows name files; not of those that are files of the split themselves."""
        tables = self._builder is None or kind_of(self._builder) in ("arrow", "cache", "csv", "json", "parquet")
        # What is on the Hub has the commit of the other files.
        rows = self.versions_of_rows(split) if tables and isinstance(self._home, LocalHome) else NO_FILES
        return {} if rows == NO_FILES else {"rows": rows}

    def _named_files(self, split: str) -> Iterator[str | None]:
        if self._builder is None:
            return super()._named_files(split)
        if kind_of(self._builder) == "parquet":
            column = self._image_column(self._streamed)
            return self._readable(lambda: (path for file in self._files(split) for path in named_in(file, column)))
        return self._readable(self._named_by_rows)

    def _named_by_rows(self) -> Iterator[str | None]:
        import datasets

        column = self._image_column(self._streamed)
        rows = self._streamed.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        for value in (row[column] for row in rows):
            if not value or value["bytes"] is None:
                yield value and value["path"]

    @property
    def length(self) -> int | None:
        """The number of rows where it is known without reading them."""
        if self._builder is None:
            return len(self._streamed)
        stated = (self._builder.info.splits or {}).get(self._split)
        return stated.num_examples or None if stated else None


def named_in(file: str, column: str) -> Iterator[str | None]:
    """Yields the paths of the rows of a Parquet file that hold no image; images are not read where it can be told."""
    opened = pq.ParquetFile(file)
    kind = opened.schema_arrow.field(column).type
    if not pa.types.is_struct(kind):
        # Bytes are images, and texts are paths.
        images = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        for batch in () if images else opened.iter_batches(columns=[column]):
            yield from batch[column].to_pylist()
        return
    for number in range(opened.num_row_groups):
        group = opened.metadata.row_group(number)
        parts = {group.column(place).path_in_schema: group.column(place) for place in range(group.num_columns)}
        contents = parts.get(f"{column}.bytes")
        counts: Any = contents.statistics if contents is not None and contents.is_stats_set else None
        missing = counts.null_count if counts is not None and counts.has_null_count else None
        if missing == 0 or f"{column}.path" not in parts:
            continue
        wanted = [f"{column}.path", *([] if missing == group.num_rows or contents is None else [f"{column}.bytes"])]
        for batch in opened.iter_batches(row_groups=[number], columns=wanted):
            for value in batch[column].to_pylist():
                if not value or value.get("bytes") is None:
                    yield value and value.get("path")

"""The image datasets that `datasets` reads, of the Hub or a local folder, as encoded image files."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ssdd_hub.data.columns import find_image_column, find_label_column, suggest
from ssdd_hub.data.dataset_card import licence_text
from ssdd_hub.data.dataset_home import HubHome
from ssdd_hub.data.labels import Labels, read_labels
from ssdd_hub.data.left_out import (
    check_archives,
    check_class_folders,
    check_shards,
    check_split_names,
    describe_files,
    find_left_out,
    has_index,
    image_files,
)
from ssdd_hub.data.local_home import LocalHome
from ssdd_hub.data.row_files import BROKEN_ARCHIVE, read_row
from ssdd_hub.errors import InputError

MISTAKES = (AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError, *BROKEN_ARCHIVE)
"""What `datasets` raises, beside its own errors, for tables with unexpected metadata."""

NO_FILES = hashlib.sha256().hexdigest()
"""What `DatasetSource.versions_of_rows` returns where all rows hold their images."""

_HASHED, _END = 64, 2**16  # files, at least where there are as many, and bytes of each end

# Formats that read nothing but their files, and `cache`, what `datasets` has prepared of these before. HDF5 files hold
# links to other files, and a Lance dataset states where its files are.
_FORMATS = "arrow audiofolder cache csv imagefolder json parquet text videofolder webdataset".split()

# What to do about texts in errors of `datasets`.
_REMEDIES = {
    "Invalid string class label": "class folders in archives must be unpacked",
    "`file_name`, ": "the columns of metadata are named in its first line, between commas, or in each object of JSON "
    "lines, and file_name is that of the images' names, which are texts",
    "have different features": "give all files of metadata the same columns of the same types; where one has no "
    "integer in some rows, they become fractions: write texts",
    "list index out of range": "a file of metadata, a table or an archive has no rows",
    "Parquet magic bytes": "where large files are pointers of Git LFS, fetch them: git lfs pull",
}


class DatasetSource:
    """A dataset of the Hub or a local folder, read with `datasets`.

    The arguments are the settings of `DataSettings`. Configuration and columns are checked before anything large is
    downloaded, as far as the card states them.
    """

    default_size = None

    def __init__(
        self,
        name: str,
        config: str | None = None,
        revision: str | None = None,
        image_column: str = "auto",
        label_column: str = "auto",
        progress: bool = True,
        follow_links: bool = False,
    ) -> None:
        self._name, self._revision, self._progress = name, revision, progress
        self._wanted = (image_column, label_column)
        self._home = _find_home(name, revision, follow_links)
        if isinstance(self._home, LocalHome) and revision:
            raise InputError(f"'{name}' is a folder, which has no revisions; leave out --data.revision '{revision}'")
        saved = isinstance(self._home, LocalHome) and self._home.saved
        self._builder: Any = None if saved else _find_builder(self._home, config, revision)
        if self._builder is None:
            self.splits = list(self._tables)
        else:
            self.splits = [str(split) for split in self._builder.info.splits or self._builder.config.data_files]
            if self.splits == ["train"] and not self._home.patterns:
                check_split_names(self._home)
            if isinstance(self._home, LocalHome) and kind_of(self._builder) in ("imagefolder", "webdataset"):
                check_archives(self._home, _data_files(self._builder), label_column != "none")
            if self._builder.info.features:
                self._image_column(self._builder.info)
                find_label_column(self._builder.info.features, label_column)

    @cached_property
    def _tables(self) -> Mapping[str, Any]:
        import datasets

        try:
            if self._builder is None:
                # A format that was saved with it would hide columns, and change what rows hold.
                saved = datasets.load_from_disk(self._home.opened).with_format(None)
                tables = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
            else:
                with _progress_bars(self._progress):
                    self._builder.download_and_prepare()
                # `as_dataset` refuses splits without rows.
                filled = [split for split, info in self._builder.info.splits.items() if info.num_examples]
                tables = {split: self._builder.as_dataset(split) for split in filled}
        except (datasets.exceptions.DatasetsError, *MISTAKES) as error:
            if self._builder is None and isinstance(error, IndexError):  # what `load_from_disk` raises without rows
                raise InputError(f"the dataset '{self._name}' holds no images in one of its splits") from error
            raise self._unreadable(error) from error
        return {str(split): table for split, table in tables.items()}

    def _unreadable(self, error: BaseException) -> InputError:
        reason = self._home.reason(error.__cause__ or error)
        remedy = next((f" ({remedy})" for text, remedy in _REMEDIES.items() if text in reason), "")
        return InputError(f"the dataset '{self._name}' cannot be read: {reason}{remedy}")

    @cached_property
    def left_out(self) -> list[str]:
        """A text for each image file of a folder of images that no split holds; see `find_left_out`."""
        files = [] if self._builder is None else _data_files(self._builder)
        if not files or kind_of(self._builder) != "imagefolder":
            return []
        return find_left_out(self._home, files, self._paths(), self.splits)

    def _paths(self) -> Iterator[str]:
        """Yields the paths of all images."""
        import datasets

        for table in filter(None, map(self._table, self.splits)):
            for column in (name for name, kind in table.features.items() if isinstance(kind, datasets.Image)):
                for batch in (
                    table.select_columns([column]).cast_column(column, datasets.Image(decode=False)).iter(1000)
                ):
                    yield from (value["path"] for value in batch[column] if value and value["path"])

    def _table(self, split: str) -> Any:
        return self._tables.get(split)  # none without rows

    def _image_column(self, table: Any) -> str:
        try:
            return find_image_column(table.features or {}, self._wanted[0])
        except InputError as error:
            kind = "imagefolder" if self._builder is None else kind_of(self._builder)
            raise InputError(f"{error}{_beside(self._home, kind)}") from error

    def num_rows(self, split: str) -> int:
        """Returns the number of images of a split; the first call downloads the data, each checks the columns."""
        if split not in self._tables:
            return 0
        self._image_column(self._tables[split])
        return len(self._tables[split])

    def rows(self, split: str, indices: Sequence[int]) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """Yields for each image its place, for messages, and a function that reads its file; see `read_row`."""
        return self._encoded(self._tables[split].select(indices), indices)

    def _encoded(self, table: Any, numbers: Iterable[int]) -> Iterator[tuple[str, Callable[[], bytes]]]:
        import datasets

        column = self._image_column(table)
        numbers = iter(numbers)
        table = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        for batch in table.iter(batch_size=64):
            for value in batch[column]:
                content, path = (value["bytes"], value["path"]) if value else (None, None)
                where = f"row {next(numbers)}" + (f" ({self._home.shown(path)})" if path else "")
                yield where, partial(read_row, self._home, where, content, path)

    def versions(self, split: str) -> list[list[str]]:
        """Returns the files of a split, each with its commit, its ETag, or its size and time, and a hash of ends."""
        if self._builder is None:
            paths = sorted(map(str, Path(self._home.opened).rglob("*.arrow")))
            return [*(self._version(path, ()) for path in paths), [_hash_ends(paths)]]
        by_split = self._builder.config.data_files or {}
        if not by_split:  # prepared before, from what its hash tells
            return [[str(self._builder.hash)]]
        # Without files by split, any of them may belong to it.
        parts = [by_split[split]] if split in by_split else by_split.values()
        # `datasets` does not drop the metadata of files that it leaves out, but it has metadata of files on the Hub
        # only, all of which have the same commit.
        files = [pair for part in parts for pair in zip(part, part.origin_metadata, strict=False)]
        return [*(self._version(file, origin) for file, origin in files), [_hash_ends([file for file, _ in files])]]

    def _version(self, file: str, origin: Sequence[str]) -> list[str]:
        path = Path(file)
        if not path.is_file():
            return [file, *map(str, origin)]
        return [self._home.shown(file), str(path.stat().st_size), str(path.stat().st_mtime_ns)]

    def versions_of_rows(self, split: str) -> str:
        """Returns a hash of the files, each with its size and time, that rows name instead of holding an image."""
        digest, files = hashlib.sha256(), list[str]()
        for path in self._named_files(split):
            place = self._home.find(path) if path and not path.startswith("data:") else None
            digest.update(json.dumps(self._version(place.file, ()) if place else [path]).encode())
            files += [place.file] if place else []
        if files:
            digest.update(_hash_ends(files).encode())
        return digest.hexdigest()

    def _named_files(self, split: str) -> Iterator[str | None]:
        """Yields the path of each row of a split that holds no image."""
        import datasets
        import pyarrow.compute as pc

        table = self._tables[split]
        column = self._image_column(table)
        parts = table.select_columns([column]).cast_column(column, datasets.Image(decode=False)).flatten()
        # Of Arrow tables, whose contents are not read.
        for batch in parts.with_format("arrow").iter(1000):
            yield from batch[f"{column}.path"].filter(pc.is_null(batch[f"{column}.bytes"])).to_pylist()

    def check_apart(self, split: str, heldout_split: str) -> None:
        """Refuses data files that are in both splits."""
        shared = {*self._files(split)} & {*self._files(heldout_split)}
        if shared:
            raise InputError(
                f"{len(shared)} files of '{self._name}', such as '{self._home.shown(min(shared))}', are in both "
                f"splits '{split}' and '{heldout_split}', by the names of folders and files or by the card: correct "
                "these, as held-out images must be others"
            )

    def _files(self, split: str) -> list[str]:
        by_split = {} if self._builder is None else self._builder.config.data_files or {}
        return [str(file) for file in by_split.get(split, [])]

    def labels(self, *splits: str) -> dict[str, Labels | None]:
        """Returns the labels of splits as `read_labels` does; the first is the one that is trained on."""
        if self._builder is not None and kind_of(self._builder) == "imagefolder":
            for split in splits:
                if len(self._tables[split].features) == 1 and not has_index(self._files(split)):
                    check_class_folders(self._home, self._files(split), _data_files(self._builder))
        # `datasets` gives all splits the names of all their folders.
        declared = self._builder is None or kind_of(self._builder) != "imagefolder"
        return read_labels({split: self._tables[split] for split in splits}, self._wanted[1], declared)

    def describe(self, split: str) -> dict[str, Any]:
        """Returns what provenance records of a split; the revision is the commit where it is known."""
        licence = self._home.licence
        values = {"config": None, "revision": self._revision, "image_column": self._image_column(self._table(split))}
        if self._builder is not None:
            info = self._builder.info
            files = [*(info.download_checksums or ()), *_data_files(self._builder)]
            commit = re.search(r"^hf://[^@]+@([0-9a-f]{40})/", "\n".join(files), re.MULTILINE)
            values |= {"config": self._builder.config.name, "revision": commit.group(1) if commit else self._revision}
            licence = licence or licence_text(info.license)
        return {**values, "license": licence or "unknown"}


def kind_of(builder: Any) -> str:
    """Returns the format of a dataset, by the name that `datasets` has for it."""
    return str(builder.__module__.split(".")[-1])


def _beside(home: LocalHome | HubHome, kind: str) -> str:
    """Returns what a message about files of another format adds where there are image files too."""
    if kind == "imagefolder" or not (images := image_files(home)):
        return ""
    tables = ", or, if they list the images, call them metadata.csv and the column of the images' names file_name"
    return (
        f". The {len(images)} image files of '{home.name}', such as {images[0]}, are not read, as more of its files, "
        f"or those that are called like splits, are of the format {kind!r}: move those out of the folder"
        f"{tables if kind in ('csv', 'json') else ''}"
    )


def _data_files(builder: Any) -> list[str]:
    return [str(file) for part in (builder.config.data_files or {}).values() for file in part]


def _find_home(name: str, revision: str | None, follow_links: bool) -> LocalHome | HubHome:
    """Returns the folder of this name, if there is one, and otherwise the repository of the Hub."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        path = Path(name).expanduser()
        exists, is_folder = path.exists(), path.is_dir()
    except (OSError, RuntimeError, ValueError):  # too long, of a user who does not exist, or with a null character
        exists = is_folder = False
    if is_folder:
        return LocalHome(name, follow_links)
    if exists:
        problem = f"'{name}' is a file"
    elif name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        problem = f"the folder '{name}' does not exist"
    elif name in _PACKAGED_DATASETS_MODULES:  # `datasets` would read the working directory
        problem = f"'{name}' is a format and no dataset, and there is no folder of that name here"
    elif name.startswith("buckets/"):
        problem = f"'{name}' is a bucket"
    else:
        try:
            validate_repo_id(name)
            return HubHome(name, revision)
        except HFValidationError:
            problem = (
                f"'{name}' is neither a folder that exists nor a Hub id, which is a name or owner/name of letters, "
                "digits, '-', '_' and '.'"
            )
    raise InputError(f"{problem}; --data.name takes a Hub id or the folder that holds the images, or 'digits'")


def _hash_ends(files: Sequence[str]) -> str:
    """Returns a hash of the first and last bytes of some of the files that are here, spread over all.

    Names, sizes and times may be those of another dataset: of bitmaps of one size, unpacked with times that are fixed.
    """
    digest = hashlib.sha256()
    for file in files[:: max(1, len(files) // _HASHED)]:
        if os.path.isfile(file):
            with open(file, "rb") as opened:
                digest.update(opened.read(_END))
                opened.seek(max(0, os.path.getsize(file) - _END))
                digest.update(opened.read(_END))
    return digest.hexdigest()[:16]


def _find_builder(home: LocalHome | HubHome, config: str | None, revision: str | None) -> Any:
    home.check_cards()
    home.check_linked_folders()
    builder = _open_builder(home, config, revision)
    kind, files = kind_of(builder), _data_files(builder)
    if kind not in _FORMATS:
        raise InputError(
            f"'{home.name}' must hold image files, or tables in Parquet, Arrow, CSV, JSON or WebDataset, and its "
            f"files are of the format '{kind}', which may lead to files elsewhere: convert them to Parquet"
            f"{_beside(home, kind)}"
        )
    if isinstance(home, HubHome):
        commits = [match[1] for file in files if (match := re.match(r"hf://[^@]+@([^/]+)/", file))]
        if not files and re.fullmatch("[0-9a-f]{40}", str(builder.hash)):
            commits = [builder.hash]
        home.commit = commits[0] if commits else None
        if not files and not commits:
            # Without a connection `datasets` opens what it has prepared before, of a folder too if its name was the
            # same; of what is on the Hub it keeps the commit.
            raise InputError(
                f"'{home.name}' is no folder here, and what the cache holds under this name is not known to come from "
                "the Hub; pass the folder's path as --data.name, or restore the connection"
            )
    else:
        check_shards(home, files)
    home.check_files(files)
    return builder


def _open_builder(home: LocalHome | HubHome, config: str | None, revision: str | None) -> Any:
    import datasets
    import yaml

    name = home.name
    try:
        return datasets.load_dataset_builder(home.opened, config, revision=revision)
    except (*MISTAKES, datasets.exceptions.DatasetsError, yaml.YAMLError) as error:
        reason = home.reason(error)
        problem = f"--data.name '{name}' cannot be opened: {reason}"
        if isinstance(error, ConnectionError):
            problem = f"'{name}' is no local folder, and the Hub cannot be reached to look for it ({reason}); "
            problem += "check the connection, or pass a folder as --data.name"
        elif isinstance(error, FileNotFoundError):
            left_out = ", ".join(find_left_out(home, [])[:5])
            reason = describe_files(home) if isinstance(home, LocalHome) else reason
            problem = f"no images found under --data.name '{name}': {left_out or reason}"
        elif isinstance(error, ValueError) and re.search("BuilderConfig|Config name", str(error)):
            known = datasets.get_dataset_config_names(home.opened, revision=revision)
            wrong = f"has no configuration '{config}'" if config else "has several configurations; pass --data.config"
            problem = f"the dataset '{name}' {wrong}; {suggest(config or '', known)}"
        raise InputError(problem) from error


@contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    import datasets

    quieten = not shown and not datasets.are_progress_bars_disabled()
    if quieten:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if quieten:
            datasets.enable_progress_bars()

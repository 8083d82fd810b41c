"""The folder of a distilled set: written whole or not at all, its record, and the sha256 of tensors."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssdd_hub.errors import InputError, require
from ssdd_hub.plain_files import require_plain

FORMAT_VERSION = 1
METADATA_FILE = "ssdd_hub.json"
PARQUET_GLOB = "data/train-*.parquet"
PARQUET_FILE = "data/train-{:05d}-of-{:05d}.parquet"  # number and count of the files
PREVIEW_FILE = "preview.png"
CARD_FILE = "README.md"
TRANSFORM_FILE = "target_transform.safetensors"

# Name of a tensor: its column and the type of its values.
COLUMNS = {
    "images": ("pixels", "float32"),
    "targets": ("target", "float32"),
    "labels": ("label", "int64"),
    "views": ("view", "int64"),
    "view_targets": ("view_target", "float32"),
}
MEND = "fetch or make the set again"
_REQUIRED = {"images", "targets"}
_MOST_SIZES = 5  # of a tensor
_MOST_BYTES = 8 * 2**20  # of a record
_MOST_LEVELS = 30  # of a record
_CHUNK_BYTES = 16 * 2**20
_SHA256 = re.compile("[0-9a-f]{64}")
_OWN_ENTRIES = {METADATA_FILE, CARD_FILE, PREVIEW_FILE, TRANSFORM_FILE, "data"}


@dataclass(frozen=True)
class Stated:
    """What `ssdd_hub.json` states of a tensor.

    Attributes:
        shape: Its sizes.
        sha256: The digest of its values.
    """

    shape: tuple[int, ...]
    sha256: str

    def __post_init__(self) -> None:
        sizes = self.shape if isinstance(self.shape, list | tuple) else ()
        require(
            (
                0 < len(sizes) <= _MOST_SIZES and all(type(size) is int and size > 0 for size in sizes),
                f"a shape must be 1 to {_MOST_SIZES} whole numbers above 0; got {str(self.shape)[:80]}",
            ),
            (
                isinstance(self.sha256, str) and _SHA256.fullmatch(self.sha256) is not None,
                f"a sha256 must be 64 hexadecimal digits; got {str(self.sha256)[:80]!r}",
            ),
        )
        object.__setattr__(self, "shape", tuple(sizes))

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> "dict[str, Stated]":
        """Returns the tensors stated: `images`, `targets` and, when the set has them, labels and views.

        Raises:
            InputError: Something else is stated, a tensor is missing, or a shape or sha256 cannot be one.
        """
        entries = metadata.get("tensors")
        if not isinstance(entries, Mapping) or not all(isinstance(entry, Mapping) for entry in entries.values()):
            raise InputError(f"tensors must be stated by name, with shape and sha256; got {str(entries)[:80]}")
        missing, unknown = (sorted(names) for names in (_REQUIRED - entries.keys(), entries.keys() - COLUMNS.keys()))
        require(
            (not missing, f"images and targets must be stated; there are no {' and '.join(missing)}"),
            (not unknown, f"only {', '.join(COLUMNS)} can be stated; got {', '.join(unknown)[:80]}"),
        )
        stated = ((name, entries[name]) for name in COLUMNS if name in entries)
        return {name: cls(entry.get("shape", ()), entry.get("sha256", "")) for name, entry in stated}


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder that takes the place of `folder` when the block ends well.

    The new folder grows beside its place and is renamed to it; a set that was there is first renamed aside, and
    removed last. A block that fails leaves the old set and nothing else. A kill leaves the old set or the new one
    whole at its place; between the two renames, both whole beside it in hidden folders.

    Args:
        folder: The place; its parents are created.

    Raises:
        InputError: The place is taken by something other than a distilled set.
    """
    folder = folder.resolve()
    _check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent) as scratch:
        # One level down, because the temporary folder itself is closed to other users.
        new, old = Path(scratch, "new"), Path(f"{scratch}.old")
        new.mkdir()
        yield new
        _sync(*new.rglob("*"), new)
        try:
            # Again, since the block may have taken long.
            _check_replaceable(folder)
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        except BaseException:
            _put_back(old, folder)
            raise
        _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _put_back(old: Path, folder: Path) -> None:
    try:
        if old.exists() and not folder.exists():
            old.rename(folder)
    except OSError:
        if not folder.exists():
            raise
    # Another process may have taken the place meanwhile, and what was there before is of no more use.
    shutil.rmtree(old, ignore_errors=True)


def _check_replaceable(folder: Path) -> None:
    try:
        entries = _entries(folder)
    except NotADirectoryError as error:
        raise InputError(f"a distilled set is a folder, and {folder} is a file: choose another place") from error
    foreign = sorted(entries - _OWN_ENTRIES) if METADATA_FILE in entries else sorted(entries)
    if foreign:
        raise InputError(
            f"{folder} holds files that are no part of a distilled set ({', '.join(foreign[:3])}), and saving would "
            "remove them: choose another folder or empty this one"
        )


def _entries(folder: Path) -> set[str]:
    """Returns the names in a folder, none where it does not exist, though other processes may be replacing it."""
    try:
        before = folder.stat()
        entries = set(os.listdir(folder))
        after = folder.stat()
    except FileNotFoundError:
        return set()
    # A folder that was put aside meanwhile may have been read while it was removed, in part.
    return entries if os.path.samestat(before, after) else _entries(folder)


def _sync(*paths: Path) -> None:
    """Makes sure that the bytes are on the disk before the next rename; Windows cannot open a folder for it."""
    if os.name == "posix":
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def dump_metadata(metadata: Mapping[str, Any]) -> str:
    """Returns the text of `ssdd_hub.json`."""
    return json.dumps(metadata, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_metadata(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Writes `ssdd_hub.json`.

    Raises:
        InputError: The record is larger or deeper than `read_metadata` takes.
    """
    text = dump_metadata(metadata).encode()
    if len(text) > _MOST_BYTES or _is_deep(metadata):
        raise InputError(
            f"the record of a set must be of at most {_MOST_BYTES} bytes, nested at most {_MOST_LEVELS} deep; got "
            f"{len(text)} bytes: leave something out of its provenance"
        )
    (folder / METADATA_FILE).write_bytes(text)


def read_metadata(folder: Path) -> dict[str, Any]:
    """Reads `ssdd_hub.json`.

    Raises:
        InputError: The folder or the file is missing, the file is a link or no file, damaged, larger or deeper than a
            record has reason to be, or its format is not known here.
    """
    path = folder / METADATA_FILE
    if not folder.is_dir():
        raise InputError(f"there is no distilled set at {folder}: the folder does not exist")
    require_plain(folder, [METADATA_FILE])
    if not path.is_file():
        raise InputError(f"{folder} is not a distilled set: it has no {METADATA_FILE}")
    if path.stat().st_size > _MOST_BYTES:
        raise InputError(f"{path} must be of at most {_MOST_BYTES} bytes, got {path.stat().st_size}: {MEND}")
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged, it is not JSON ({error}): {MEND}") from error
    except RecursionError as error:
        raise _too_deep(path) from error
    if _is_deep(metadata):
        raise _too_deep(path)
    version = metadata.get("format_version") if isinstance(metadata, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path} states format_version {version!r}, this ssdd_hub reads {FORMAT_VERSION}: upgrade ssdd_hub"
        )
    return dict(metadata)


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_MOST_LEVELS + 1):
        level = [part for part in level if isinstance(part, dict | list)]
        if not level:
            return False
        level = [part for parts in level for part in (parts.values() if isinstance(parts, dict) else parts)]
    return True


def _too_deep(path: Path) -> InputError:
    return InputError(f"{path} must be nested at most {_MOST_LEVELS} deep, and is deeper: {MEND}")


def split_rows(tensor: Tensor) -> tuple[Tensor, ...]:
    """Returns views of a tensor `(M, ...)` of at most 16 MiB each, of one row at least."""
    row = tensor[:1].numel() * tensor.element_size()
    return torch.split(tensor, max(1, _CHUNK_BYTES // max(1, row)))


def to_raw(values: npt.NDArray[Any]) -> memoryview:
    """Returns the bytes of values that are hashed: little-endian, in C order; no copy where they are so already."""
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data


def describe_tensor(tensor: Tensor) -> dict[str, Any]:
    """Returns the shape, the type and the sha256 of the values as raw little-endian bytes in C order."""
    digest = hashlib.sha256()
    for part in split_rows(tensor if tensor.ndim else tensor[None]):
        digest.update(to_raw(part.cpu().numpy()))
    return {
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "sha256": digest.hexdigest(),
    }


def measure_range(pixels: Iterable[Tensor]) -> dict[str, Any]:
    """Returns the least and greatest pixel and the fraction that the 8-bit preview clips.

    Args:
        pixels: Parts of the images `(M, C, H, W)`, at least one; a tensor counts as its images.
    """
    lowest, highest, clipped, count = [], [], 0, 0
    for part in pixels:
        # Real pixels that went through a pixel space and back may miss 0 or 1 by rounding alone.
        clipped += int(((part < -1e-6) | (part > 1 + 1e-6)).sum())
        count += part.numel()
        # Numbers, since a small tensor that stays keeps the memory of the large ones around it from being freed.
        lowest.append(part.min().item())
        highest.append(part.max().item())
    return {
        "pixel_range": [float(np.min(lowest)), float(np.max(highest))],
        "clip_fraction": clipped / count,
    }

"""The tensors of a distilled set as its record states them: columns, shapes, ranges and sha256."""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssdd_hub.errors import InputError, require
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.plain_files import require_plain
from ssdd_hub.record import TRANSFORM_FILE
from ssdd_hub.targets.transform import TargetTransform

# Name of a tensor: its column and the type of its values.
COLUMNS = {
    "images": ("pixels", "float32"),
    "targets": ("target", "float32"),
    "labels": ("label", "int64"),
    "views": ("view", "int64"),
    "view_targets": ("view_target", "float32"),
}
# What values of the wrong kind or size raise where they are computed with.
MISTAKES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_REQUIRED = {"images", "targets"}
_MOST_SIZES = 5  # of a tensor
_CHUNK_BYTES = 16 * 2**20
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Stated:
    """Shape and sha256 of a tensor as `ssdd_hub.json` states them."""

    shape: tuple[int, ...]
    sha256: str

    def __post_init__(self) -> None:
        sizes = self.shape if isinstance(self.shape, list | tuple) else ()
        fits = 0 < len(sizes) <= _MOST_SIZES and all(type(size) is int and size > 0 for size in sizes)
        is_digest = isinstance(self.sha256, str) and _SHA256.fullmatch(self.sha256) is not None
        require(
            (fits, f"a shape must be 1 to {_MOST_SIZES} whole numbers above 0; got {str(self.shape)[:80]}"),
            (is_digest, f"a sha256 must be 64 hexadecimal digits; got {str(self.sha256)[:80]!r}"),
        )
        object.__setattr__(self, "shape", tuple(sizes))

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> "dict[str, Stated]":
        """Returns the stated tensors: `images`, `targets` and, when the set has them, labels and views.

        Raises an `InputError` for others, for a missing one, and for a shape or sha256 that cannot be one.
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


class StatedSet(NamedTuple):
    """What the record of a set states of its data, of the right types."""

    tensors: dict[str, Stated]
    pixel_space: PixelSpace
    label_names: list[str] | None
    transform_sha256: str | None

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> "StatedSet":
        """Reads a record; raises an `InputError`, or one of `MISTAKES` for what is missing or of another type."""
        tensors, space = Stated.of(metadata), PixelSpace.from_dict(metadata["pixel_space"])
        if not all(map(math.isfinite, (*space.mean, *space.std))):
            raise InputError(f"the pixel space must be finite, got {space}")
        names = metadata["label_names"]
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise InputError(f"label_names must be a list of texts, or null; got {str(names)[:80]}")
        # As text, since None would let any file pass.
        sha256 = str(metadata["target_transform"]["sha256"]) if "target_transform" in metadata else None
        return cls(tensors, space, names or None, sha256)

    def load_transform(self, folder: Path) -> TargetTransform | None:
        """Loads the target transform from the folder of the set; None where none is stated."""
        if self.transform_sha256 is None:
            return None
        require_plain(folder, [TRANSFORM_FILE])
        return TargetTransform.load(folder / TRANSFORM_FILE, self.transform_sha256)


def split_rows(tensor: Tensor) -> tuple[Tensor, ...]:
    """Returns views of a tensor `(M, ...)` of at most 16 MiB each, of one row at least."""
    row = tensor[:1].numel() * tensor.element_size()
    return torch.split(tensor, max(1, _CHUNK_BYTES // max(1, row)))


def to_raw(values: npt.NDArray[Any]) -> memoryview:
    """Returns the bytes of values that are hashed: little-endian, in C order; no copy where they are so already."""
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data


def describe_tensor(tensor: Tensor) -> dict[str, Any]:
    """Returns `shape`, `dtype` and the `sha256` of the values as raw little-endian bytes in C order."""
    digest = hashlib.sha256()
    for part in split_rows(tensor if tensor.ndim else tensor[None]):
        digest.update(to_raw(part.cpu().numpy()))
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"shape": list(tensor.shape), "dtype": dtype, "sha256": digest.hexdigest()}


def measure_range(pixels: Iterable[Tensor]) -> dict[str, Any]:
    """Returns the least and greatest pixel of parts of the images, and the fraction that the 8-bit preview clips."""
    lowest, highest, clipped, count = [], [], 0, 0
    for part in pixels:
        # Real pixels that went through a pixel space and back may miss 0 or 1 by rounding alone.
        clipped += int(((part < -1e-6) | (part > 1 + 1e-6)).sum())
        count += part.numel()
        # Numbers, since a small tensor that stays keeps the memory of the large ones around it from being freed.
        lowest.append(part.min().item())
        highest.append(part.max().item())
    return {"pixel_range": [float(np.min(lowest)), float(np.max(highest))], "clip_fraction": clipped / count}

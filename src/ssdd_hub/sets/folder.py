"""The tensors of a distilled set as its record states them: columns, shapes, ranges and sha256."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssdd_hub.errors import InputError, require

# Name of a tensor: its column and the type of its values.
COLUMNS = {
    "images": ("pixels", "float32"),
    "targets": ("target", "float32"),
    "labels": ("label", "int64"),
    "views": ("view", "int64"),
    "view_targets": ("view_target", "float32"),
}
_REQUIRED = {"images", "targets"}
_MOST_SIZES = 5  # of a tensor
_CHUNK_BYTES = 16 * 2**20
_SHA256 = re.compile("[0-9a-f]{64}")


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

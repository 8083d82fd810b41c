"""The tensors of a distilled set as its record states them: columns, shapes, ranges and sha256."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssdd_hub.errors import InputError
from ssdd_hub.plain_files import require_plain
from ssdd_hub.record import REMEDY, TRANSFORM_FILE
from ssdd_hub.record_schema import Stated
from ssdd_hub.sets.shared import load_shared
from ssdd_hub.sets.storage import Decoder
from ssdd_hub.targets.transform import TargetTransform

# What values of the wrong kind or size raise where they are computed with.
MISTAKES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_CHUNK_BYTES = 16 * 2**20


class StatedSet(NamedTuple):
    """What the record of a set states of its data, of the right types."""

    tensors: dict[str, Stated]
    shared: dict[str, Stated]
    decoder: Decoder
    label_names: list[str] | None
    transform_sha256: str | None

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> "StatedSet":
        """Reads the record of a set, which keeps to the schema."""
        tensors, label_names = Stated.of(metadata), metadata.get("label_names") or None
        sha256 = metadata["target_transform"]["sha256"] if metadata.get("target_transform") else None
        return cls(tensors, Stated.of_shared(metadata), Decoder.of(metadata, tensors), label_names, sha256)

    @property
    def shown(self) -> dict[str, Stated]:
        """The tensors as they are decoded."""
        return self.decoder.shown(self.tensors)

    def load_decoder(self, folder: Path) -> Decoder:
        """Returns the decoder with the tensors that all rows share, from the folder of the set."""
        shared = load_shared(folder, self.shared)
        for name, tensor in shared.items():
            if describe_tensor(tensor)["sha256"] != self.shared[name].sha256:
                raise InputError(f"the {name} are not those that were saved, their sha256 differs: {REMEDY}")
        return replace(self.decoder, shared=shared)

    def load_transform(self, folder: Path) -> TargetTransform | None:
        """Loads the target transform from the folder of the set; None where none is stated."""
        if self.transform_sha256 is None:
            return None
        require_plain(folder, [TRANSFORM_FILE])
        width = self.shown["targets"].shape[1]
        return TargetTransform.load(folder / TRANSFORM_FILE, self.transform_sha256, width)


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


def describe_storage(decoder: Decoder) -> dict[str, Any]:
    """Returns the `storage` of a record."""
    shared = {name: describe_tensor(tensor) for name, tensor in decoder.shared.items()}
    return {**decoder.to_dict(), **({"shared": shared} if shared else {})}


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

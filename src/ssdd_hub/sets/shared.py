"""The file of the tensors that all rows of a compact set share, checked against the record while it is read.

Whole numbers stand in it compressed (zstd), as in the columns of the set, as bytes of the type uint8.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ssdd_hub.errors import InputError
from ssdd_hub.plain_files import require_modest_weights, require_plain
from ssdd_hub.record import REMEDY, SHARED_FILE
from ssdd_hub.record_schema import Stated

CODEC = ("zstd", 19)
_MOST_BEYOND = 2**16  # bytes of the file beside its tensors


def compressed(tensor: Tensor) -> bytes:
    """Returns the values of a tensor, compressed."""
    raw = tensor.contiguous().cpu().numpy().tobytes()
    return bytes(pa.Codec(*CODEC).compress(raw, asbytes=True))


def save_shared(folder: Path, tensors: Mapping[str, Tensor]) -> int:
    """Writes the file of a set that has such tensors; returns its bytes, 0 for none."""
    if not tensors:
        return 0
    parts = {
        name: tensor.contiguous()
        if tensor.is_floating_point()
        else torch.frombuffer(bytearray(compressed(tensor)), dtype=torch.uint8)
        for name, tensor in tensors.items()
    }
    save_file(parts, folder / SHARED_FILE)
    return (folder / SHARED_FILE).stat().st_size


def load_shared(folder: Path, stated: Mapping[str, Stated]) -> dict[str, Tensor]:
    """Reads the tensors that a record states, whose sizes were checked.

    Raises:
        InputError: The file is missing, damaged or larger, or holds other tensors.
    """
    if not stated:
        return {}
    require_plain(folder, [SHARED_FILE])
    path = folder / SHARED_FILE
    try:
        # Numbers that do not compress take a little more.
        most = (
            2 * sum(math.prod(each.shape) * np.dtype(each.dtype).itemsize for each in stated.values()) + _MOST_BEYOND
        )
        if path.stat().st_size > most:
            raise ValueError(f"it has more than {most} bytes")
        require_modest_weights(path)
        with safe_open(path, framework="pt") as file:
            if sorted(file.keys()) != sorted(stated):
                raise ValueError(f"it must hold {' and '.join(stated)} alone")
            return {name: _unpacked(name, file.get_tensor(name).clone(), each) for name, each in stated.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not what the record states ({error}): {REMEDY}") from error


def _unpacked(name: str, stored: Tensor, stated: Stated) -> Tensor:
    dtype = getattr(torch, stated.dtype)
    if not dtype.is_floating_point:
        if stored.dtype != torch.uint8:
            raise ValueError(f"{name} is not compressed")
        size = math.prod(stated.shape) * np.dtype(stated.dtype).itemsize
        # An OSError for more or fewer bytes than these.
        raw = pa.Codec(CODEC[0]).decompress(stored.numpy().tobytes(), size, asbytes=True)
        stored = torch.frombuffer(bytearray(raw), dtype=dtype).view(stated.shape)
    if tuple(stored.shape) != stated.shape or stored.dtype != dtype:
        raise ValueError(f"{name} is {tuple(stored.shape)} of {stored.dtype}, not {stated.shape} of {dtype}")
    return stored

"""The folder of a distilled set: written whole or not at all, read with nothing but pyarrow, checked by sha256."""

import hashlib
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from ssdd_hub.errors import InputError

FORMAT_VERSION = 1
METADATA_FILE = "ssdd_hub.json"
PARQUET_FILE = "data/train-00000-of-00001.parquet"
PARQUET_GLOB = "data/train-*.parquet"
PREVIEW_FILE = "preview.png"
CARD_FILE = "README.md"
TRANSFORM_FILE = "target_transform.safetensors"

# Name of a tensor: its column and the type of its values.
_COLUMNS = {
    "images": ("pixels", pa.float32()),
    "targets": ("target", pa.float32()),
    "labels": ("label", pa.int64()),
    "views": ("view", pa.int64()),
    "view_targets": ("view_target", pa.float32()),
}
_REQUIRED = ("images", "targets")
_LISTS = (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)
_MEND = "fetch or make the set again"
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

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> "dict[str, Stated]":
        """Returns the tensors stated: `images`, `targets` and, when the set has them, labels and views."""
        entries = metadata["tensors"]
        names = [name for name in _COLUMNS if name in _REQUIRED or name in entries]
        return {
            name: cls(tuple(int(size) for size in entries[name]["shape"]), entries[name]["sha256"]) for name in names
        }


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
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        except BaseException:
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
        _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"a distilled set is a folder, and {folder} is a file: choose another place")
    entries = {entry.name for entry in folder.iterdir()}
    foreign = sorted(entries - _OWN_ENTRIES) if METADATA_FILE in entries else sorted(entries)
    if foreign:
        raise InputError(
            f"{folder} holds files that are no part of a distilled set ({', '.join(foreign[:3])}), and saving would "
            "remove them: choose another folder or empty this one"
        )


def _sync(*paths: Path) -> None:
    """Makes sure that the bytes are on the disk before the next rename; Windows cannot open a folder for it."""
    if os.name == "posix":
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def write_metadata(folder: Path, metadata: dict[str, Any]) -> None:
    """Writes `ssdd_hub.json`."""
    text = json.dumps(metadata, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / METADATA_FILE).write_text(text + "\n", encoding="utf-8")


def read_metadata(folder: Path) -> dict[str, Any]:
    """Reads `ssdd_hub.json`.

    Raises:
        InputError: The folder or the file is missing, the file is damaged, or its format is not known here.
    """
    path = folder / METADATA_FILE
    if not folder.is_dir():
        raise InputError(f"there is no distilled set at {folder}: the folder does not exist")
    if not path.is_file():
        raise InputError(f"{folder} is not a distilled set: it has no {METADATA_FILE}")
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged, it is not JSON ({error}): {_MEND}") from error
    version = metadata.get("format_version") if isinstance(metadata, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path} states format_version {version!r}, this ssdd_hub reads {FORMAT_VERSION}: upgrade ssdd_hub"
        )
    return dict(metadata)


def describe_tensor(tensor: Tensor) -> dict[str, Any]:
    """Returns the shape, the type and the sha256 of the values as raw little-endian bytes in C order."""
    values = tensor.cpu().contiguous().numpy()
    raw = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    return {
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "sha256": hashlib.sha256(raw).hexdigest(),
    }


def write_tensors(
    folder: Path, tensors: dict[str, Tensor], pixels: Tensor, label_names: Sequence[str] | None = None
) -> None:
    """Writes the parquet file and the preview picture.

    Args:
        folder: The folder of the set.
        tensors: `images` `(M, C, H, W)` and `targets` `(M, D)`, float32; when there are any, `labels` `(M,)`, int64,
            and `views` `(M, K, 3)`, int64, with `view_targets` `(M, K, D)`, float32.
        pixels: `(M, C, H, W)`, the images as pixels; those outside `[0, 1]` are clipped.
        label_names: Names of the classes; without them the labels stay plain numbers.
    """
    # Imported here, since reading needs none of it and it takes seconds.
    from datasets import Array3D, ClassLabel, Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    previews = [_to_picture(image) for image in pixels]
    images, targets = tensors["images"], tensors["targets"]
    features = {
        "id": Value("int64"),
        "image": ImageFeature(),
        "pixels": Array3D(shape=tuple(images.shape[1:]), dtype="float32"),
        "target": List(Value("float32"), length=targets.shape[1]),
    }
    columns = {
        "id": range(len(images)),
        "image": [{"bytes": _to_png(preview), "path": None} for preview in previews],
        "pixels": images.cpu().numpy(),
        "target": targets.cpu().numpy(),
    }
    if "labels" in tensors:
        features["label"] = ClassLabel(names=list(label_names)) if label_names else Value("int64")
        columns["label"] = tensors["labels"].cpu().numpy()
    for name, value_type in (("views", "int64"), ("view_targets", "float32")):
        if name in tensors:
            (column, _), (_, count, width) = _COLUMNS[name], tensors[name].shape
            features[column] = List(List(Value(value_type), length=width), length=count)
            columns[column] = tensors[name].cpu().numpy()
    # The table's schema carries the features, so `load_dataset` needs no more than this file.
    table = Dataset.from_dict(columns, features=Features(features)).data.table
    (folder / PARQUET_FILE).parent.mkdir()
    pq.write_table(table, folder / PARQUET_FILE, compression="zstd", use_dictionary=False)
    _to_grid(previews[:64]).save(folder / PREVIEW_FILE)


def _to_picture(image: Tensor) -> Image.Image:
    """Turns pixels `(C, H, W)` into an 8-bit picture, grey for one channel."""
    values = image.cpu().clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(values[0].numpy() if len(values) == 1 else values.permute(1, 2, 0).numpy())


def _to_png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _to_grid(pictures: Sequence[Image.Image], cell: int = 96, gap: int = 2) -> Image.Image:
    """Places pictures in rows, enlarged without smoothing to about `cell` pixels each."""
    scale = max(1, cell // max(pictures[0].size))
    width, height = (side * scale for side in pictures[0].size)
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    size = (columns * (width + gap) - gap, rows * (height + gap) - gap)
    grid = Image.new(pictures[0].mode, size, "white")
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        enlarged = picture.resize((width, height), Image.Resampling.NEAREST)
        grid.paste(enlarged, (column * (width + gap), row * (height + gap)))
    return grid


def read_tensors(folder: Path, stated: Mapping[str, Stated]) -> dict[str, Tensor]:
    """Reads tensors from the parquet files, all shards in the order of their names, and checks them.

    Args:
        folder: The folder of the set.
        stated: The names of the tensors and what is to be found.

    Raises:
        InputError: A file or column is missing or damaged, or a tensor is not the one stated.
    """
    paths = sorted(folder.glob(PARQUET_GLOB))
    if not paths:
        raise InputError(f"{folder} has no {PARQUET_GLOB}: {_MEND}")
    columns = [_COLUMNS[name][0] for name in stated]
    try:
        # `ParquetFile` reads this very file, where `read_table` would take folders named `key=value` for columns.
        table = pa.concat_tables([pq.ParquetFile(path).read(columns=columns) for path in paths])
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        # The last two come from extension types of `datasets` that read their damaged description.
        raise InputError(f"the parquet files of {folder} are damaged ({error}): {_MEND}") from error
    for column in columns:
        if column not in table.column_names:
            raise InputError(f"the parquet files of {folder} lack the column {column!r}: {_MEND}")
    return {name: _read_tensor(table, name, entry) for name, entry in stated.items()}


def _read_tensor(table: pa.Table, name: str, stated: Stated) -> Tensor:
    column, value_type = _COLUMNS[name]
    # `datasets`, once imported, makes pyarrow wrap nested lists in its own extension type.
    chunks = [getattr(chunk, "storage", chunk) for chunk in table[column].chunks]
    values = pa.concat_arrays(chunks) if chunks else pa.array([], value_type)
    lengths = list(accumulate(stated.shape, mul))
    fits = bool(lengths)
    for length in lengths[:-1]:
        fits = fits and isinstance(values, _LISTS) and len(values) == length
        values = values.flatten() if fits else values
    if not fits or values.type != value_type or len(values) != lengths[-1]:
        raise InputError(f"column {column!r} does not hold {name} of the stated shape {stated.shape}: {_MEND}")
    tensor = torch.from_numpy(values.to_numpy(zero_copy_only=False).copy().reshape(stated.shape))
    if describe_tensor(tensor)["sha256"] != stated.sha256:
        raise InputError(f"the {name} are not those that were saved, their sha256 differs: {_MEND}")
    return tensor


def measure_range(pixels: Tensor) -> dict[str, Any]:
    """Returns the least and greatest pixel and the fraction that the 8-bit preview clips."""
    # Real pixels that went through a pixel space and back may miss 0 or 1 by rounding alone.
    outside = (pixels < -1e-6) | (pixels > 1 + 1e-6)
    return {
        "pixel_range": [pixels.min().item(), pixels.max().item()],
        "clip_fraction": outside.double().mean().item(),
    }

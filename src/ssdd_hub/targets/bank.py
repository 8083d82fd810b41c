"""A teacher's features on the disk: a folder of shards, each a safetensors file, and an index that is written last."""

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ssdd_hub.errors import InputError
from ssdd_hub.files import atomic_path
from ssdd_hub.plain_files import require_readable_entries

INDEX_FILE = "index.json"
FORMAT_VERSION = 1
_TYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


class Shard(NamedTuple):
    """The header of a shard."""

    num_features: int
    width: int
    dtype: torch.dtype
    skipped: dict[int, str]  # why images of the dataset are missing, by row
    squares: float  # sum over the features, before they were rounded
    squared_errors: float  # sum over the rounding errors
    sha256: str | None  # of all of it and the matrix; None in a file of an earlier version

    @property
    def num_rows(self) -> int:
        """Rows of the dataset that the shard stands for, the skipped ones included."""
        return self.num_features + len(self.skipped)

    @classmethod
    def read(cls, path: Path) -> "Shard":
        """Reads a header; a `ValueError` says whether the file is missing, cut short, or no shard."""
        try:
            with safe_open(path, framework="pt") as file:
                stated = json.loads((file.metadata() or {})["shard"])
                if list(file.keys()) != ["features"]:
                    raise ValueError(f"it holds {', '.join(file.keys())}")
                matrix = file.get_slice("features")
                count, width = matrix.get_shape()
                dtype = _TYPES[matrix.get_dtype()]
            skipped = {int(row): str(why) for row, why in stated["skipped"].items()}
            sha256 = str(stated["sha256"]) if "sha256" in stated else None
            return cls(count, width, dtype, skipped, float(stated["squares"]), float(stated["squared_errors"]), sha256)
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path.name} is missing or damaged ({error})") from error

    def describes(self, path: Path) -> bool:
        """Whether header and matrix of a file have the stated hash, which is not known of older files."""
        if self.sha256 is None:
            return True
        facts = {"skipped": self.skipped, "squares": self.squares, "squared_errors": self.squared_errors}
        rows = torch.empty(self.num_features, self.width, dtype=self.dtype)
        try:
            _read_rows(path, torch.arange(self.num_features), rows)
        except (OSError, ValueError):  # another run has replaced it meanwhile
            return False
        return _digest(facts, rows) == self.sha256


def shard_path(folder: Path, number: int) -> Path:
    """Returns the path of a shard."""
    return folder / f"shard-{number:05d}.safetensors"


def _digest(facts: dict[str, Any], stored: Tensor) -> str:
    # SHA-256 and not a CRC, since processors compute it as fast, and the teacher takes longer.
    facts = {**facts, "skipped": {str(row): why for row, why in facts["skipped"].items()}}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update(stored.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_shard(path: Path, features: Tensor, dtype: torch.dtype, skipped: Mapping[int, str] | None = None) -> None:
    """Writes features `(n, D)`, on the CPU, rounded to `dtype`; atomically, the same bytes for the same features."""
    stored, squares, errors = features.to(dtype).contiguous(), 0.0, 0.0
    # In parts, since these copies in float64 would otherwise be most of the memory needed.
    for given, rounded in zip(torch.split(features, 1024), torch.split(stored, 1024), strict=True):
        exact = given.to(torch.float64)
        if not exact.isfinite().all():
            raise InputError("the teacher gives NaN or infinite features: use another teacher, or look at its input")
        if not rounded.isfinite().all():
            name, most = str(dtype).removeprefix("torch."), torch.finfo(dtype).max
            raise InputError(
                f"the features reach {exact.abs().max().item():.4g}, and {name} holds at most {most:.4g}: pass "
                "--targets.dtype bfloat16 or teacher"
            )
        squares += exact.square().sum().item()
        errors += (rounded.to(torch.float64) - exact).square().sum().item()
    facts = {"skipped": dict(skipped or {}), "squares": squares, "squared_errors": errors}
    facts["sha256"] = _digest(facts, stored)
    with atomic_path(path) as temporary:
        # One entry only: safetensors writes several in any order.
        save_file({"features": stored}, temporary, metadata={"shard": json.dumps(facts, sort_keys=True)})


@dataclass(frozen=True)
class Index:
    """The content of `index.json`: all shards together."""

    key: dict[str, Any]  # what the features depend on
    about: dict[str, Any]  # `teacher` and `source`: name, licence and origin of both, on which no number depends
    num_images: int  # features `N`
    num_rows: int  # of the dataset, the skipped ones included
    num_shards: int
    shard_size: int  # rows of every shard but the last
    width: int
    dtype: str  # such as `float16`
    rounding_error: float  # root mean square of the rounding errors, relative to that of the features
    skipped: dict[int, str]  # why images are missing, by row
    format_version: int = FORMAT_VERSION

    @classmethod
    def of(
        cls, key: dict[str, Any], shards: Sequence[Shard], shard_size: int, about: dict[str, Any] | None = None
    ) -> "Index":
        """Sums up shards."""
        squares = math.fsum(shard.squares for shard in shards)
        errors = math.fsum(shard.squared_errors for shard in shards)
        return cls(
            key,
            about or {},
            num_images=sum(shard.num_features for shard in shards),
            num_rows=sum(shard.num_rows for shard in shards),
            num_shards=len(shards),
            shard_size=shard_size,
            width=shards[0].width,
            dtype=str(shards[0].dtype).removeprefix("torch."),
            rounding_error=math.sqrt(errors / squares) if squares else 0.0,
            skipped={row: why for shard in shards for row, why in shard.skipped.items()},
        )

    def write(self, folder: Path) -> None:
        """Writes `index.json` atomically."""
        with atomic_path(folder / INDEX_FILE) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2, sort_keys=True) + "\n", encoding="utf-8")


class FeatureBank:
    """Features `(N, D)` in a folder of shards with an index; only the rows that are indexed are read into memory.

    Consecutive rows are read at once, and nothing stays open or mapped: mapped pages count as memory of the process,
    and a dataset may have more shards than a process may open files. A shard may be computed again meanwhile.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        require_readable_entries(folder)
        try:
            stated = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
            shards = [Shard.read(shard_path(folder, number)) for number in range(stated["num_shards"])]
            self.index = Index.of(stated["key"], shards, stated["shard_size"], stated["about"])
            size = self.index.shard_size
            whole = all(shard.num_rows == size for shard in shards[:-1]) and 0 < shards[-1].num_rows <= size
            alike = len({(shard.width, shard.dtype) for shard in shards}) == 1
            # Through JSON, which turns the rows into text.
            if not whole or not alike or json.loads(json.dumps(asdict(self.index))) != stated:
                raise ValueError(f"{INDEX_FILE} does not describe the shards")
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise InputError(
                f"{folder} does not hold a teacher's features, whole: {error}; compute them again"
            ) from error
        self._shards, self.width, self.dtype = shards, self.index.width, shards[0].dtype
        self._starts = torch.tensor([0, *(shard.num_features for shard in shards)]).cumsum(0)
        self._held: Tensor | None = None

    def __len__(self) -> int:
        return self.index.num_images

    def __str__(self) -> str:
        index = self.index
        return f"{len(self)} x {self.width} {index.dtype}, relative rounding error {index.rounding_error:.2g}"

    def shards(self) -> list[tuple[Path, Shard]]:
        """Returns the files of the shards, in order, and what their headers said when the bank was opened."""
        return [(shard_path(self.folder, number), shard) for number, shard in enumerate(self._shards)]

    @property
    def num_bytes(self) -> int:
        """Size of all features together."""
        return len(self) * self.width * self.dtype.itemsize

    def hold(self) -> None:
        """Reads all features into memory, from which rows are copied afterwards."""
        if self._held is None:
            self._held = self[:]

    def __getitem__(self, rows: Tensor | Sequence[int] | slice) -> Tensor:
        """Returns a copy `(n, D)`, on the CPU, of the rows of a slice, or at indices in `[0, N)`, which may repeat."""
        wanted = torch.arange(len(self))[rows] if isinstance(rows, slice) else torch.as_tensor(rows).cpu()
        if len(wanted) and not 0 <= int(wanted.min()) <= int(wanted.max()) < len(self):
            raise IndexError(f"rows {int(wanted.min())} to {int(wanted.max())} of {len(self)} features are asked for")
        if self._held is not None:
            return self._held[wanted]
        if isinstance(rows, slice):
            return self._read(wanted.contiguous())
        ascending, order = wanted.sort()
        return self._read(ascending)[order.argsort()]

    def _read(self, rows: Tensor) -> Tensor:
        """Reads rows `(n,)` in ascending order."""
        found = torch.empty(len(rows), self.width, dtype=self.dtype)
        edges = torch.searchsorted(rows, self._starts).tolist()
        for number, (first, last) in enumerate(itertools.pairwise(edges)):
            if first == last:
                continue
            path = shard_path(self.folder, number)
            try:
                _read_rows(path, rows[first:last] - self._starts[number], found[first:last])
            except (OSError, ValueError) as error:
                raise InputError(
                    f"{path} is missing or damaged ({error}), and was whole before: compute the features again"
                ) from error
        return found

    def describe(self) -> dict[str, Any]:
        """Returns what provenance records of the features."""
        facts = {name: getattr(self.index, name) for name in ("num_images", "width", "dtype", "rounding_error")}
        return {**facts, "num_skipped": len(self.index.skipped)}


def _read_rows(path: Path, rows: Tensor, into: Tensor) -> None:
    """Reads ascending rows of a shard into a matrix `(n, D)`; twice as fast on scattered rows as `get_slice`."""
    row_size = into.shape[1] * into.dtype.itemsize
    # NumPy has no bfloat16, so as bytes.
    buffer = into.view(torch.uint8).flatten().numpy().data
    edges = [0, *((rows.diff() != 1).nonzero().flatten() + 1).tolist(), len(rows)]
    with path.open("rb") as file:
        # The only tensor of a safetensors file follows its header, whose length comes first.
        begin = 8 + int.from_bytes(file.read(8), "little")
        for first, last in itertools.pairwise(edges):
            file.seek(begin + int(rows[first]) * row_size)
            part = buffer[first * row_size : last * row_size]
            if file.readinto(part) < len(part):
                raise ValueError("it is cut short")

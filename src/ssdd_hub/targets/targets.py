"""Targets of real images: a teacher's features or one-hot vectors of class labels, transformed."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

from ssdd_hub.bounds import Count, Settings, at_least, at_most, one_of
from ssdd_hub.errors import Check
from ssdd_hub.targets.bank import FeatureBank
from ssdd_hub.targets.cache import DTYPES
from ssdd_hub.targets.labels import LABELS, OneHot
from ssdd_hub.targets.transform import PROJECTIONS, TRANSFORMS, TargetTransform

MOST_IN_MEMORY = 2**30  # bytes of the features of each view, in each process


@dataclass(frozen=True)
class TargetSettings(Settings, section="targets"):
    """What targets are made of, and how.

    Attributes:
        of: `teacher`: its features; `labels`: one-hot vectors of the class labels of the source, always centred, for
            which there is no teacher.
        transform: `none`; `centre`: subtract the mean of each dimension; `standardise`: also divide by the overall
            std; `standardise-each`: divide each dimension by its own std instead; `pca`: project on the `dim`
            principal directions; `pca-standardise`: also divide them by their overall std; `whiten`: divide each of
            them by its own std instead.
        dim: Width `D'` of targets that are projected. None for all directions, or for `whiten` all that have
            variance.
        views: `0`: features of the images as they are, or of each freshly augmented batch. `K`: of `K` fixed
            augmented views of each image, computed once.
        batch_size: Images per forward pass of the teacher.
        shard_size: Images whose features make one file; what an interrupted pass has to compute again at most.
        dtype: How features are stored: `teacher`, as the teacher computes them, or rounded to `float16` or `bfloat16`.
        refresh: Compute again although cached features are there.
    """

    of: Annotated[str, one_of(("teacher", LABELS))] = "teacher"
    transform: Annotated[str, one_of(TRANSFORMS)] = "none"
    dim: Count | None = None
    views: Annotated[int, at_least(0), at_most(10_000)] = 0
    batch_size: Count = 256
    shard_size: Count = 8192
    dtype: Annotated[str, one_of(DTYPES)] = "teacher"
    refresh: bool = False

    def conflicts(self) -> Iterator[Check]:
        """Yields that a width is given to projections only, and these to features only."""
        yield (
            self.dim is None or self.transform in PROJECTIONS,
            f"targets.dim is for --targets.transform {', '.join(PROJECTIONS)}, got {self.transform!r}",
        )
        yield (
            self.of != LABELS or self.transform not in PROJECTIONS,
            f"--targets.of labels has a dimension for each class: give --targets.transform centre, standardise or "
            f"standardise-each, got {self.transform!r}",
        )

    def computing(self) -> dict[str, Any]:
        """Returns the settings of a `FeatureCache`."""
        return {name: getattr(self, name) for name in ("batch_size", "shard_size", "dtype", "refresh")}


@dataclass(frozen=True, eq=False)
class Targets:
    """Targets `(N, D')` of all images, of which only the rows that are indexed are transformed.

    Features on the disk of at most `MOST_IN_MEMORY` bytes are read into memory once for all their targets; of larger
    ones only the indexed rows are read. Both give the same bits. A transform of all rows at once would not: a product
    rounds differently with other numbers of rows.
    """

    features: FeatureBank | OneHot | Tensor  # (N, D)
    transform: TargetTransform
    dtype: torch.dtype = torch.float32  # in which targets are computed too
    _ready: TargetTransform = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ready", self.transform.to("cpu", self.dtype))
        if isinstance(self.features, FeatureBank) and self.features.num_bytes <= MOST_IN_MEMORY:
            self.features.hold()

    def __len__(self) -> int:
        return len(self.features)

    @property
    def width(self) -> int:
        """Width `D'`."""
        return self.transform.width

    @property
    def on_disk(self) -> bool:
        """Whether each access reads the features from the disk."""
        return isinstance(self.features, FeatureBank) and self.features.num_bytes > MOST_IN_MEMORY

    def describe(self) -> dict[str, Any]:
        """Returns what provenance records of the features; of a tensor, nothing."""
        return {} if isinstance(self.features, Tensor) else self.features.describe()

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Returns targets `(n, D')`, on the CPU, of a slice, or at indices `(n,)` in `[0, N)`, which may repeat."""
        return self._ready(self.features[rows].to("cpu", self.dtype))

"""Targets: a teacher's features of real images, transformed."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

from ssdd_hub.bounds import Count, Natural, Settings, one_of
from ssdd_hub.errors import Check
from ssdd_hub.targets.bank import FeatureBank
from ssdd_hub.targets.cache import DTYPES, FeatureCache, fixed_views
from ssdd_hub.targets.transform import PROJECTIONS, TRANSFORMS, TargetTransform

# Bytes of the features that are read into memory whole: those of each view, in each process.
MOST_IN_MEMORY = 2**30

__all__ = ["FeatureCache", "TargetSettings", "TargetTransform", "Targets", "fixed_views"]


@dataclass(frozen=True)
class TargetSettings(Settings, section="targets"):
    """How the teacher's features are computed and become targets.

    Attributes:
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

    transform: Annotated[str, one_of(TRANSFORMS)] = "none"
    dim: Count | None = None
    views: Natural = 0
    batch_size: Count = 256
    shard_size: Count = 8192
    dtype: Annotated[str, one_of(DTYPES)] = "teacher"
    refresh: bool = False

    def conflicts(self) -> Iterator[Check]:
        """Yields that a width is given to projections only."""
        yield (
            self.dim is None or self.transform in PROJECTIONS,
            f"targets.dim is for --targets.transform {', '.join(PROJECTIONS)}, got {self.transform!r}",
        )

    def computing(self) -> dict[str, Any]:
        """Returns the settings that a `FeatureCache` takes."""
        names = ("batch_size", "shard_size", "dtype", "refresh")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, eq=False)
class Targets:
    """Targets `(N, D')` of all images, of which only those asked for are transformed.

    Features on the disk that take at most `MOST_IN_MEMORY` bytes are read into memory first, once for all targets that
    are made of them; of larger ones only the rows asked for are read. The targets are the same bit for bit, which they
    would not be if all were transformed at once, as on a GPU: a product rounds differently with other numbers of rows.

    Attributes:
        features: `(N, D)`, on the disk or in memory.
        transform: Makes targets of them.
        dtype: Type of the targets, in which they are computed too.
    """

    features: FeatureBank | Tensor
    transform: TargetTransform
    dtype: torch.dtype = torch.float32
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

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Returns the targets of some images, `(n, D')`, on the CPU.

        Args:
            rows: Indices `(n,)` in `[0, N)`, which may repeat, or a slice.
        """
        return self._ready(self.features[rows].to("cpu", self.dtype))

"""Teacher features of all real images, computed once, cached by what they depend on, and transformed."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from ssdd_hub.augment import crop_flip, draw_views
from ssdd_hub.checkpoint import atomic_path
from ssdd_hub.errors import require
from ssdd_hub.images import ImageBank
from ssdd_hub.streams import generator
from ssdd_hub.teacher import Teacher

TRANSFORMS = ("none", "centre", "standardise", "standardise-each")


@dataclass(frozen=True)
class TargetSettings:
    """How the teacher's features become targets.

    Attributes:
        transform: `none`; `centre`: subtract the mean of each dimension; `standardise`: also divide by the overall
            std; `standardise-each`: divide each dimension by its own std instead.
        views: `0`: features of the images as they are, or of each freshly augmented batch. `K`: of `K` fixed
            augmented views of each image, computed once.
        batch_size: Images per forward pass of the teacher.
        refresh: Compute again although cached features are there.
    """

    transform: str = "none"
    views: int = 0
    batch_size: int = 256
    refresh: bool = False

    def __post_init__(self) -> None:
        require(
            (
                self.transform in TRANSFORMS,
                f"targets.transform must be one of {', '.join(TRANSFORMS)}, got {self.transform!r}",
            ),
            (self.views >= 0, f"targets.views must be at least 0, got {self.views}"),
            (self.batch_size >= 1, f"targets.batch_size must be at least 1, got {self.batch_size}"),
        )


@dataclass(frozen=True)
class TargetTransform:
    """An affine map of teacher features to targets, `(features - mean) / scale`; recorded, so that users can map back.

    Attributes:
        kind: One of `TRANSFORMS`.
        mean: `(D,)`.
        scale: `(D,)`, above 0.
    """

    kind: str
    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, kind: str, features: Tensor) -> "TargetTransform":
        """Measures the transform on features `(n, D)`."""
        exact = features.to(torch.float64)
        mean, scale = torch.zeros_like(exact[0]), torch.ones_like(exact[0])
        if kind != "none":
            mean = exact.mean(0)
        if kind == "standardise":
            scale = scale * (exact - mean).square().mean().sqrt()
        elif kind == "standardise-each":
            scale = (exact - mean).square().mean(0).sqrt()
        # A constant dimension has no scale of its own.
        scale = torch.where(scale > 1e-12, scale, torch.ones_like(scale))
        return cls(kind, mean, scale)

    def __call__(self, features: Tensor) -> Tensor:
        """Maps teacher features `(..., D)` to targets."""
        return (features - self.mean.to(features)) / self.scale.to(features)

    def describe(self) -> dict[str, Any]:
        """Returns the JSON form: kind, mean and scale."""
        if self.kind == "none":
            return {"kind": self.kind}
        return {"kind": self.kind, "mean": self.mean.tolist(), "scale": self.scale.tolist()}


def fixed_views(num_images: int, view: int, seed: int) -> Tensor:
    """Returns the crop and flip of each image in one of the `K` fixed views: `(N, 3)`, as `draw_views` gives them."""
    return draw_views(num_images, generator(seed, "fixed view", view))


@torch.no_grad()
def compute_features(
    teacher: Teacher, pixels: Tensor, accelerator: Accelerator, *, batch_size: int, views: Tensor | None = None
) -> Tensor:
    """Runs the teacher over all images, chunks shared out over the processes.

    The chunks are the same for any number of processes, so that the features are too.

    Args:
        teacher: On `accelerator.device`.
        pixels: `(N, C, H, W)`, uint8.
        accelerator: Names the device and the processes.
        batch_size: Images per chunk.
        views: Crop and flip of each image, `(N, 3)`, or None for the images as they are.

    Returns:
        `(N, D)` on the CPU, in the dtype of the teacher, the same on every process.
    """
    dtype = next(teacher.parameters()).dtype
    starts = range(0, len(pixels), batch_size)
    mine: dict[int, Tensor] = {}
    for start in tqdm(
        starts[accelerator.process_index :: accelerator.num_processes],
        desc="targets",
        unit="batch",
        disable=len(starts) < 50 or not accelerator.is_main_process,
    ):
        part = pixels[start : start + batch_size].to(accelerator.device, dtype) / 255
        if views is not None:
            part = crop_flip(part, views[start : start + batch_size])
        mine[start] = teacher(part).cpu()
    merged = {start: part for share in gather_object([mine]) for start, part in share.items()}
    return torch.cat([merged[start] for start in starts])


class FeatureCache:
    """A teacher's features of whole image banks, computed once and kept on disk.

    A file's name is the hash of all that its content depends on: the images, the teacher's weights, size and pixel
    space, the type, the views.

    Args:
        teacher: On `accelerator.device`.
        accelerator: See `compute_features`.
        folder: Where the files are.
        batch_size: Images per forward pass.
        refresh: Compute again although a file is there.
    """

    def __init__(
        self,
        teacher: Teacher,
        accelerator: Accelerator,
        folder: Path,
        *,
        batch_size: int = 256,
        refresh: bool = False,
    ) -> None:
        self.teacher = teacher
        self.accelerator = accelerator
        self.folder = folder
        self.batch_size = batch_size
        self.refresh = refresh
        facts = teacher.describe()
        self._key = {name: facts[name] for name in ("weights_sha256", "input_size", "pixel_space")}
        self._key["dtype"] = str(next(teacher.parameters()).dtype)

    def features(self, bank: ImageBank) -> Tensor:
        """Returns the features of the images as they are: `(N, D)`, on the CPU."""
        return self._load_or_compute({"images": bank.fingerprint}, lambda: self._compute(bank, None))

    def view_features(self, bank: ImageBank, num_views: int, seed: int) -> Tensor:
        """Returns the features of `K` fixed augmented views of each image: `(K, N, D)`, on the CPU."""
        crops = (fixed_views(len(bank), view, seed) for view in range(num_views))
        key = {"images": bank.fingerprint, "views": num_views, "seed": seed}
        return self._load_or_compute(key, lambda: torch.stack([self._compute(bank, views) for views in crops]))

    def _compute(self, bank: ImageBank, views: Tensor | None) -> Tensor:
        return compute_features(self.teacher, bank.pixels, self.accelerator, batch_size=self.batch_size, views=views)

    def _load_or_compute(self, key: dict[str, Any], compute: Callable[[], Tensor]) -> Tensor:
        text = json.dumps({**self._key, **key}, sort_keys=True)
        path = self.folder / f"features-{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"
        # Every process must decide alike, or some would wait for the others' shares for ever.
        if all(gather_object([path.exists() and not self.refresh])):
            return load_file(path)["features"]
        features = compute()
        if self.accelerator.is_main_process:
            with atomic_path(path) as temporary:
                save_file({"features": features.contiguous()}, temporary)
        return features

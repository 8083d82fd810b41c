"""Real images with their targets, for selections and as training pairs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ssdd_hub.data.bank import ImageBank
from ssdd_hub.models.pretraining import Pair
from ssdd_hub.pixel_space import PixelSpace, black_pixel
from ssdd_hub.targets.targets import Targets
from ssdd_hub.targets.transform import TargetTransform
from ssdd_hub.teachers.teacher import Teacher


@dataclass(frozen=True, eq=False)
class Source:
    """The input of a selection: images, their targets, and how these were made."""

    bank: ImageBank
    targets: Targets | Tensor  # (N, D)
    teacher: Teacher | None  # None where the targets are class labels
    transform: TargetTransform
    pixel_space: PixelSpace  # that of real images for students, and of the selected images
    device: torch.device | str = "cpu"  # where experts are trained

    @property
    def classes(self) -> Tensor | None:
        """The classes `(N,)` that the targets are of; None for those of a teacher."""
        return None if self.teacher else self.bank.labels

    def images(self, rows: Tensor) -> Tensor:
        """Returns source images `(n, C, H, W)`, float32, in the students' pixel space."""
        return self.pixel_space.normalise(self.bank.pixels[rows].float() / 255)


@dataclass(frozen=True, eq=False)
class SourcePairs:
    """All source images with their targets `(N, D)`, for students on `device`: the upper bound of all sets."""

    source: ImageBank
    targets: Targets | Tensor
    pixel_space: PixelSpace
    device: torch.device | str = "cpu"
    num_views: int = 0

    def __len__(self) -> int:
        return len(self.source)

    @property
    def black(self) -> Tensor:
        """A black pixel in the students' space, `(C, 1, 1)`."""
        return black_pixel(self.pixel_space, self.device)

    def batch(self, indices: Tensor) -> Pair:
        """Returns images `(n, C, H, W)` and targets `(n, D)`."""
        images = self.pixel_space.normalise(self.source.pixels[indices].to(self.device, torch.float32) / 255)
        return images, self.targets[indices].to(self.device)

    def view(self, indices: Tensor, views: Tensor) -> Pair:
        """Returns the images as they are: a source holds no views."""
        return self.batch(indices)

"""What methods on a frozen backbone share: augmented views, and features of those of real images, computed once."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from ssdd_hub.bounds import Natural, Repeats
from ssdd_hub.data.augment import AUGMENTATIONS
from ssdd_hub.distill.backbone import BackboneSettings
from ssdd_hub.distill.networks import Augmented
from ssdd_hub.models.features import in_parts
from ssdd_hub.runs.machine import require_memory
from ssdd_hub.seeds import generator

_PART = 128  # real images whose features are computed at a time


@dataclass(frozen=True)
class FrozenSettings(BackboneSettings):
    """Settings of a frozen backbone that sees augmented images.

    Attributes:
        views: Times that a step sees each image of the set, augmented anew.
        real_views: Augmented views of each real image, drawn once, whose features are kept; 0 for a fresh one in each
            step.
        augment: How both are augmented, each image by itself.
    """

    views: Repeats = 10
    real_views: Natural = 0
    augment: Augmented = "flip-resize-noise"


def augment_set(images: Tensor, augment: str, seed: int, step: int, view: int) -> Tensor:
    """Returns one augmented view `(M, C, H, W)` of a set in a step, the same on every process; differentiable."""
    return AUGMENTATIONS[augment](images, generator(seed, "view of the set", step, view), False)


def augment_real(images: Tensor, augment: str, seed: int, step: int) -> Tensor:
    """Returns a fresh augmented view `(n, C, H, W)` of each real image of a step."""
    return AUGMENTATIONS[augment](images, generator(seed, "views of real images", step), False)


class KeptViews:
    """Features of augmented views of all real images, which a backbone that never changes computes once.

    Args:
        images: Returns real images `(n, C, H, W)` at indices `(n,)`.
        features: Returns the features `(n, F)` of images.
        count: The number `N` of real images.
        settings: Of the method.
        seed: Of the draws.
    """

    def __init__(
        self,
        images: Callable[[Tensor], Tensor],
        features: Callable[[Tensor], Tensor],
        count: int,
        settings: FrozenSettings,
        seed: int,
    ) -> None:
        self._images, self._features, self._count, self._seed = images, features, count, seed
        self._augment = settings.augment
        self._views = 1 if settings.augment == "none" else settings.real_views
        self._parts = list[Tensor]()
        self._kept: Tensor | None = None
        self.rehearsed = False  # whether features of few images stand for all

    def __len__(self) -> int:
        """Returns the number of parts in which `compute` does it."""
        return self._views * -(-self._count // _PART)

    def compute(self) -> Iterator[None]:
        """Computes all features, part after part, going on where it was left."""
        for view, first in list(product(range(self._views), range(0, self._count, _PART)))[len(self._parts) :]:
            rows = torch.arange(first, min(first + _PART, self._count))
            drawn = generator(self._seed, "kept views of real images", view, first // _PART)
            with torch.no_grad():
                images = AUGMENTATIONS[self._augment](self._images(rows), drawn, False)
                self._parts.append(torch.cat([self._features(part).cpu() for part in in_parts(images)]))
            if len(self._parts) == 1:
                size = self._count * self._parts[0][0].numel() * self._parts[0].itemsize
                require_memory("--method.args real_views", self._views, size, "cpu")
            yield

    def draw(self, rows: Tensor, step: int) -> Tensor:
        """Returns the features `(n, F)`, on the CPU, of a view of each image at indices `(n,)`, drawn by the step."""
        views = torch.randint(self._views, rows.shape, generator=generator(self._seed, "views of real images", step))
        return self.kept[views, rows]

    @property
    def kept(self) -> Tensor:
        """All features, `(K, N, F)`, on the CPU; those that are missing are computed."""
        if self.rehearsed:
            if not self._parts:
                next(self.compute())
            return self._parts[0][torch.arange(self._count) % len(self._parts[0])].expand(self._views, -1, -1)
        if self._kept is None:
            deque(self.compute(), maxlen=0)
            self._kept, self._parts = torch.cat(self._parts).view(self._views, self._count, -1), []
        return self._kept

"""What methods on a frozen backbone share: augmented views, and features of those of real images, computed once."""

from collections.abc import Callable
from dataclasses import dataclass

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


def show_set(images: Tensor, augment: str, seed: int, step: int, view: int) -> Tensor:
    """Returns one augmented view `(M, C, H, W)` of a set in a step, the same on every process; differentiable."""
    return AUGMENTATIONS[augment](images, generator(seed, "view of the set", step, view), False)


def show_real(images: Tensor, augment: str, seed: int, step: int) -> Tensor:
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
        self._kept: Tensor | None = None
        self.rehearsed = False  # whether features of few images are kept, which stand for all

    def draw(self, rows: Tensor, step: int) -> Tensor:
        """Returns the features `(n, F)`, on the CPU, of a view of each image at indices `(n,)`, drawn by the step."""
        drawn = generator(self._seed, "views of real images", step)
        return self.kept[torch.randint(self._views, rows.shape, generator=drawn), rows]

    @property
    def kept(self) -> Tensor:
        """All features, `(K, N, F)`, on the CPU."""
        if self._kept is None:
            self._kept = self._compute()
        return self._kept

    @torch.no_grad()
    def _compute(self) -> Tensor:
        found = list[Tensor]()
        for view in range(self._views):
            for place, rows in enumerate(torch.split(torch.arange(self._count), _PART)):
                drawn = generator(self._seed, "kept views of real images", view, place)
                images = AUGMENTATIONS[self._augment](self._images(rows), drawn, False)
                found.append(torch.cat([self._features(part).cpu() for part in in_parts(images)]))
                if self.rehearsed:
                    return found[0][torch.arange(self._count) % len(rows)].expand(self._views, -1, -1)
                if len(found) == 1:
                    size = self._count * found[0][0].numel() * found[0].itemsize
                    require_memory("--method.args real_views", self._views, size, "cpu")
        return torch.cat(found).view(self._views, self._count, -1)

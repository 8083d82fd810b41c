"""Pre-training of a student on a distilled set, by the recipe that the set states."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssdd_hub.data.augment import crop_flip
from ssdd_hub.errors import InputError
from ssdd_hub.models.pretraining import Pair, UseSettings, fit_student
from ssdd_hub.pixel_space import black_pixel
from ssdd_hub.record import section
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.statements import check_use


@dataclass(frozen=True, eq=False)
class SetPairs:
    """The pairs of a distilled set, all on the students' device.

    Attributes:
        distilled: The set.
        device: Where the students are.
    """

    distilled: DistilledSet
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        names = ("images", "targets", "views", "view_targets")
        moved = {name: getattr(self.distilled, name) for name in names}
        object.__setattr__(self, "_on_device", {n: t if t is None else t.to(self.device) for n, t in moved.items()})

    def __len__(self) -> int:
        return len(self.distilled.images)

    @property
    def black(self) -> Tensor:
        """What a black pixel is in the set's space, `(C, 1, 1)`."""
        return black_pixel(self.distilled.pixel_space, self.device)

    @property
    def num_views(self) -> int:
        """Views `K` that the set holds of each image."""
        return 0 if self.distilled.views is None else self.distilled.views.shape[1]

    def batch(self, indices: Tensor) -> Pair:
        """Returns images `(n, C, H, W)` and targets `(n, D)`."""
        indices = indices.to(self.device)
        return self._tensor("images")[indices], self._tensor("targets")[indices]

    def view(self, indices: Tensor, views: Tensor) -> Pair:
        """Returns images cropped and flipped as stored, and the targets stored for them; view 0 is the image."""
        indices, views = indices.to(self.device), views.to(self.device)
        images, targets = self.batch(indices)
        stored, rows = (views - 1).clamp_min(0), views > 0
        crops = self._tensor("views")[indices, stored]
        seen = crop_flip(images - self.black, crops) + self.black
        mixed = torch.where(rows[:, None, None, None], seen, images)
        return mixed, torch.where(rows[:, None], self._tensor("view_targets")[indices, stored], targets)

    def _tensor(self, name: str) -> Tensor:
        tensors: dict[str, Tensor] = getattr(self, "_on_device")  # noqa: B009
        return tensors[name]


def stated_use(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the recipe that a set states, as settings of `UseSettings`; what it leaves out is not in it.

    Raises:
        InputError: What is stated is no recipe.
    """
    stated = section(provenance, "use")
    check_use(stated)
    names = ("epochs", "max_steps", "batch_size", "learning_rate", "momentum", "weight_decay")
    settings = {name: stated[name] for name in names if name in stated}
    return {**settings, **({"augment": stated["augmentation"]} if stated.get("augmentation") else {})}


def pretrain_student(student: nn.Module, distilled: DistilledSet, seed: int = 0, **changes: Any) -> nn.Module:
    """Pre-trains a student on a set, by the recipe that the set states.

    Args:
        student: Freshly built, with a head as wide as the set's targets, such as from `build_student`; trained in
            place, on the device where it is.
        distilled: The set.
        seed: Seed of the order of the images and of their augmentation.
        **changes: Settings of `UseSettings` that are to differ from the recipe, such as `epochs`.

    Returns:
        The student, in eval mode. Real images are fed to it in `distilled.student_pixel_space`.

    Raises:
        InputError: The recipe, or a change of it, is not one, or the student does not fit the set.
    """
    try:
        settings = UseSettings(**{**stated_use(distilled.provenance), **changes})
    except TypeError as error:
        raise InputError(f"the recipe of the set cannot be followed ({error}): give its settings by name") from error
    pairs = SetPairs(distilled, next(student.parameters()).device)
    return fit_student(student, pairs, settings, seed, progress=True)

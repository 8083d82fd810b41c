"""Pre-training of a student on a distilled set, by the recipe that the set states."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ssdd_hub.data.augment import show_views
from ssdd_hub.distill.parameterisations.views import kind_of_views
from ssdd_hub.errors import InputError
from ssdd_hub.models.pretraining import Pair, StudentTrainingSettings, fit_student
from ssdd_hub.pixel_space import black_pixel
from ssdd_hub.record import section
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.statements import check_use
from ssdd_hub.text import first_line

_STATED = (
    "epochs max_steps steps batch_size learning_rate momentum weight_decay mixup average schedule precision".split()
)


class SetPairs:
    """The pairs of a distilled set, all on the students' device."""

    def __init__(self, distilled: DistilledSet, device: torch.device | str = "cpu") -> None:
        self.distilled, self.device = distilled, device
        tensors = {name: getattr(distilled, name) for name in ("images", "targets", "views", "view_targets")}
        self._tensors = {name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None}
        self._turned = distilled.views is not None and bool((distilled.views[..., 2] > 1).any())

    def __len__(self) -> int:
        return len(self.distilled.images)

    @property
    def black(self) -> Tensor:
        """A black pixel in the set's space, `(C, 1, 1)`."""
        return black_pixel(self.distilled.pixel_space, self.device)

    @property
    def num_views(self) -> int:
        """Stored views `K` of each image."""
        return 0 if self.distilled.views is None else self.distilled.views.shape[1]

    @property
    def view_kind(self) -> str:
        """Of which kind they are: `crops` or `rotations`, as of the parameterisation `views`."""
        return "crops" if self.distilled.views is None else kind_of_views(self.distilled.views.cpu())

    def batch(self, indices: Tensor) -> Pair:
        """Returns images `(n, C, H, W)` and targets `(n, D)`."""
        indices = indices.to(self.device)
        return self._tensors["images"][indices], self._tensors["targets"][indices]

    def view(self, indices: Tensor, views: Tensor) -> Pair:
        """Returns images cropped and flipped as stored, and the targets stored for them; view 0 is the image."""
        indices, views = indices.to(self.device), views.to(self.device)
        images, targets = self.batch(indices)
        stored, rows = (views - 1).clamp_min(0), views > 0
        crops = self._tensors["views"][indices, stored]
        seen = show_views(images, crops, self.black, self._turned)
        mixed = torch.where(rows[:, None, None, None], seen, images)
        return mixed, torch.where(rows[:, None], self._tensors["view_targets"][indices, stored], targets)


def stated_use(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a set states for `StudentTrainingSettings`; raises an `InputError` for a bad value."""
    stated = section(provenance, "use")
    check_use(stated)
    settings = {name: stated[name] for name in _STATED if name in stated}
    if stated.get("optimizer"):
        settings["optimizer"] = str(stated["optimizer"]).lower()
    return {**settings, **({"augment": stated["augmentation"]} if stated.get("augmentation") else {})}


def pretrain_student(
    student: nn.Module, distilled: DistilledSet, seed: int = 0, *, progress: bool = True, **changes: Any
) -> nn.Module:
    """Pre-trains a student on a set, by the recipe that the set states.

    Args:
        student: Freshly built, such as by `build_student`, with a head as wide as the set's targets; trained in place,
            on the device where it is.
        distilled: The set.
        seed: Seed of the order of the images and of their augmentation.
        progress: Whether to show a bar.
        **changes: Settings of `StudentTrainingSettings` that differ from the recipe, such as `epochs`.

    Returns:
        The student, in eval mode. Real images are fed to it in `distilled.student_pixel_space`.

    Raises:
        InputError: The recipe, or a change of it, is not one, or the student does not fit the set.
    """
    try:
        settings = StudentTrainingSettings(**{**stated_use(distilled.provenance), **changes})
    except TypeError as error:
        raise InputError(f"the recipe of the set cannot be followed ({error}): give its settings by name") from error
    pairs = SetPairs(distilled, next(student.parameters()).device)
    _check_student(student, pairs)
    return fit_student(student, pairs, settings, seed, progress)


def _check_student(student: nn.Module, pairs: SetPairs) -> None:
    """Refuses a student that does not map the set's images to its targets: torch would stretch one output over all."""
    images, targets = pairs.batch(torch.tensor([0]))
    shape, width = tuple(images.shape[1:]), targets.shape[1]
    try:
        with torch.no_grad():
            found = student.eval()(images)
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"the student must take the set's images {shape}, and fails on one ({first_line(error)}): build it with "
            f"in_chans={shape[0]} and image_size={shape[1]}"
        ) from error
    if not isinstance(found, torch.Tensor) or found.shape != targets.shape:
        got = f"shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"
        raise InputError(
            f"the student must give {width} outputs for an image, {tuple(targets.shape)}, as the set has targets; got "
            f"{got}: build it with num_targets={width}, or call student.reset_classifier({width})"
        )

"""Use of a set: a student is pre-trained on pairs of images and targets, by plain regression."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from ssdd_hub.augment import PADDING, crop_flip, draw_views
from ssdd_hub.distilled import DistilledSet
from ssdd_hub.errors import InputError, require
from ssdd_hub.images import ImageBank
from ssdd_hub.markdown import section
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.statements import check_use
from ssdd_hub.streams import draw_batch, generator
from ssdd_hub.targets import Targets

AUGMENTATIONS = ("none", "flip", "crop-flip", "views")
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class UseSettings:
    """How a student is pre-trained on a set; the defaults are those of Lee et al. (ICLR 2024) for their own sets.

    Attributes:
        epochs: Passes over the set.
        max_steps: Steps at most, whatever the epochs: what bounds the pre-training on a whole source set.
        batch_size: Images per step; all of them where there are fewer.
        learning_rate: SGD's, constant.
        momentum: SGD's.
        weight_decay: SGD's.
        augment: `none`; `flip`: each image is mirrored half of the time; `crop-flip`: it is also shifted by at most 4
            pixels; both keep the target. `views`: the image as it is or one of the views stored with it, each with the
            target stored for it.
    """

    epochs: int = 1000
    max_steps: int | None = None
    batch_size: int = 256
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-3
    augment: str = "none"

    def __post_init__(self) -> None:
        require(
            (self.epochs >= 0, f"use.epochs must be at least 0, got {self.epochs}"),
            (self.max_steps is None or self.max_steps >= 1, f"use.max_steps must be at least 1, got {self.max_steps}"),
            (self.batch_size >= 1, f"use.batch_size must be at least 1, got {self.batch_size}"),
            (self.learning_rate > 0, f"use.learning_rate must be above 0, got {self.learning_rate}"),
            (0 <= self.momentum < 1, f"use.momentum must be in [0, 1), got {self.momentum}"),
            (self.weight_decay >= 0, f"use.weight_decay must be at least 0, got {self.weight_decay}"),
            (
                self.augment in AUGMENTATIONS,
                f"use.augment must be one of {', '.join(AUGMENTATIONS)}, got {self.augment!r}",
            ),
        )

    def num_steps(self, size: int) -> int:
        """Returns the steps of a pre-training on `size` images."""
        steps = self.epochs * size // min(self.batch_size, size)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def describe(self) -> dict[str, Any]:
        """Returns the recipe for using a set, for its card."""
        return {
            "loss": "mean squared error of the head's output to the target",
            "optimizer": "SGD",
            "learning_rate": self.learning_rate,
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
            "epochs": self.epochs,
            **({} if self.max_steps is None else {"max_steps": self.max_steps}),
            "batch_size": self.batch_size,
            "augmentation": self.augment,
        }


class Pairs(Protocol):
    """What a student is pre-trained on: images with their targets."""

    @property
    def black(self) -> Tensor:
        """What a black pixel is in the space of the images, `(C, 1, 1)`."""

    @property
    def num_views(self) -> int:
        """Stored views `K` of each image."""

    def __len__(self) -> int:
        """Number of images."""

    def batch(self, indices: Tensor) -> Pair:
        """Returns images `(n, C, H, W)`, as students see them, and targets `(n, D)`, on the students' device."""

    def view(self, indices: Tensor, views: Tensor) -> Pair:
        """Returns stored views of images, and their targets; `views` `(n,)` in `[0, K]`, of which 0 is the image."""


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
        return _black(self.distilled.pixel_space, self.device)

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


@dataclass(frozen=True, eq=False)
class SourcePairs:
    """All source images with their teacher's targets: what no set made of them should beat.

    Attributes:
        source: The source images.
        targets: Their targets, `(N, D)`.
        pixel_space: The space in which students see real images.
        device: Where the students are.
    """

    source: ImageBank
    targets: Targets | Tensor
    pixel_space: PixelSpace
    device: torch.device | str = "cpu"
    num_views: int = 0

    def __len__(self) -> int:
        return len(self.source)

    @property
    def black(self) -> Tensor:
        """What a black pixel is in the students' space, `(C, 1, 1)`."""
        return _black(self.pixel_space, self.device)

    def batch(self, indices: Tensor) -> Pair:
        """Returns images `(n, C, H, W)` and targets `(n, D)`."""
        images = self.pixel_space.normalise(self.source.pixels[indices].to(self.device, torch.float32) / 255)
        return images, self.targets[indices].to(self.device)

    def view(self, indices: Tensor, views: Tensor) -> Pair:
        """Returns the images as they are: a source holds no views."""
        return self.batch(indices)


def _black(space: PixelSpace, device: torch.device | str) -> Tensor:
    return space.normalise(torch.zeros(space.channels, 1, 1, device=device))


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


def fit_student(
    student: nn.Module, pairs: Pairs, settings: UseSettings, seed: int, progress: bool = False
) -> nn.Module:
    """Pre-trains a student on pairs: SGD on the mean squared error of its head to the targets.

    Args:
        student: Freshly built, on the device of the pairs.
        pairs: Images, as the student is to see them, and targets.
        settings: See `UseSettings`.
        seed: Seed of the order of the images and of their augmentation.
        progress: Whether a bar shows it.

    Returns:
        The student, in eval mode.

    Raises:
        InputError: Views are asked for, and the pairs hold none.
    """
    if settings.augment == "views" and not pairs.num_views:
        raise InputError(
            "use.augment is views, and the set holds none: make some with ssdd_hub.add_views, or choose none, flip or "
            "crop-flip"
        )
    optimizer = torch.optim.SGD(
        student.parameters(), lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    size, steps = len(pairs), settings.num_steps(len(pairs))
    student.train()
    for step in tqdm(range(steps), "pre-training", unit="step", disable=not progress):
        indices = draw_batch(size, min(settings.batch_size, size), seed, "use of the set", step)
        images, targets = _augmented(pairs, indices, settings.augment, generator(seed, "augmentation of use", step))
        loss = functional.mse_loss(student(images), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return student.eval()


def _augmented(pairs: Pairs, indices: Tensor, augment: str, drawn: torch.Generator) -> Pair:
    if augment == "views":
        return pairs.view(indices, torch.randint(0, pairs.num_views + 1, (len(indices),), generator=drawn))
    images, targets = pairs.batch(indices)
    if augment == "none":
        return images, targets
    views = draw_views(len(images), drawn)
    if augment == "flip":
        views[:, :2] = PADDING
    # Cropping fills up with 0, which is black only before normalisation.
    return crop_flip(images - pairs.black, views) + pairs.black, targets

"""Pre-training of a student: regression from images to their targets."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from ssdd_hub.bounds import Count, Fraction, Natural, Positive, Settings, Weight, at_most, one_of
from ssdd_hub.data.augment import PADDING, crop_flip, draw_views
from ssdd_hub.errors import InputError
from ssdd_hub.seeds import draw_batch, generator
from ssdd_hub.text import first_line

AUGMENTATIONS = ("none", "flip", "crop-flip", "views")
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class StudentTrainingSettings(Settings, section="student_training"):
    """How a student is pre-trained on a set; the defaults are those of Lee et al. (ICLR 2024) for their own sets.

    Attributes:
        epochs: Passes over the set.
        max_steps: Steps at most, whatever the epochs; it bounds the pre-training on a whole source set.
        batch_size: Images per step; all of them where there are fewer.
        learning_rate: SGD's, constant.
        momentum: SGD's.
        weight_decay: SGD's.
        augment: `none`; `flip`: each image is mirrored half of the time; `crop-flip`: it is also shifted by at most 4
            pixels; both keep the target. `views`: the image as it is or one of the views stored with it, each with the
            target stored for it.
    """

    # At most what the record of a set takes: a set that cannot be saved would be known after all its work.
    epochs: Annotated[Natural, at_most(10**6)] = 1000
    max_steps: Annotated[Count, at_most(10**8)] | None = None
    batch_size: Annotated[Count, at_most(10**6)] = 256
    learning_rate: Annotated[Positive, at_most(10**4)] = 0.1
    momentum: Fraction = 0.9
    weight_decay: Annotated[Weight, at_most(10**4)] = 1e-3
    augment: Annotated[str, one_of(AUGMENTATIONS)] = "none"

    def num_steps(self, size: int) -> int:
        """Returns the steps of a pre-training on `size` images."""
        steps = self.epochs * size // min(self.batch_size, size)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def describe(self) -> dict[str, Any]:
        """Returns the recipe for using a set, for its card."""
        names = ("learning_rate", "momentum", "weight_decay", "epochs", "max_steps", "batch_size")
        numbers = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        loss = "mean squared error of the head's output to the target"
        return {"loss": loss, "optimizer": "SGD", **numbers, "augmentation": self.augment}


class Pairs(Protocol):
    """Images with their targets, on which a student is pre-trained."""

    @property
    def black(self) -> Tensor:
        """A black pixel in the space of the images, `(C, 1, 1)`."""

    @property
    def num_views(self) -> int:
        """Stored views `K` of each image."""

    def __len__(self) -> int:
        """Number of images."""

    def batch(self, indices: Tensor) -> Pair:
        """Returns images `(n, C, H, W)`, as students see them, and targets `(n, D)`, on the students' device."""

    def view(self, indices: Tensor, views: Tensor) -> Pair:
        """Returns stored views of images, and their targets; `views` `(n,)` in `[0, K]`, of which 0 is the image."""


def check_batches(student: nn.Module, batches: Mapping[str, int], *, in_chans: int, image_size: int) -> None:
    """Takes a step with a copy of a student on the smallest batches that occur, so that none ends a long run.

    Args:
        student: Untrained or not; it is left as it is.
        batches: Numbers of images, by the option that decides each.
        in_chans: Channels of the images.
        image_size: Their height and width.

    Raises:
        InputError: The student cannot be trained on so few images, as one with batch norms on a single one.
    """
    like = next(student.parameters())
    for option, size in batches.items():
        tried = copy.deepcopy(student).train()
        # More than two are no different.
        images = torch.zeros(min(size, 2), in_chans, image_size, image_size, dtype=like.dtype, device=like.device)
        try:
            with torch.random.fork_rng(devices=[]):
                tried(images).sum().backward()
        except Exception as error:  # networks may raise anything
            raise InputError(
                f"the student cannot be trained on batches of {size} image(s), which {option} makes "
                f"({first_line(error)}): use at least 2, or a student whose norms need no batch, such as "
                "ssdd_convnet3 with the argument norm instance or none"
            ) from error


def fit_student(
    student: nn.Module, pairs: Pairs, settings: StudentTrainingSettings, seed: int, progress: bool = False
) -> nn.Module:
    """Pre-trains a student by SGD on the mean squared error of its head to the targets; returns it in eval mode.

    The student is fresh and on the device of the pairs; the seed decides the order and the augmentation of images.

    Raises:
        InputError: `augment` is `views`, and the pairs hold none; or the student cannot be trained on single images.
    """
    if settings.augment == "views" and not pairs.num_views:
        raise InputError(
            "student_training.augment is views, and the set holds none: make some with ssdd_hub.add_views, or choose "
            "none, flip or crop-flip"
        )
    optimizer = torch.optim.SGD(
        student.parameters(), lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    size, steps = len(pairs), settings.num_steps(len(pairs))
    if steps and min(settings.batch_size, size) == 1:
        _, channels, _, side = pairs.batch(torch.zeros(1, dtype=torch.int64))[0].shape
        named = f"--student-training.batch-size {settings.batch_size} on {size} image(s)"
        check_batches(student, {named: 1}, in_chans=channels, image_size=side)
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
    # Crops are padded with 0, which is black only before normalisation.
    return crop_flip(images - pairs.black, views) + pairs.black, targets

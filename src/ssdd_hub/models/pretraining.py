"""Pre-training of a student: regression from images to their targets."""

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from ssdd_hub.bounds import Count, Fraction, Natural, Positive, Settings, Share, Weight, at_most, one_of
from ssdd_hub.data.augment import PADDING, augment_dsa, crop_flip, draw_views
from ssdd_hub.errors import InputError
from ssdd_hub.precision import is_quick_in_bf16
from ssdd_hub.seeds import draw_batch, generator, seeded, seeded_training
from ssdd_hub.text import first_line

AUGMENTATIONS = ("none", "flip", "crop-flip", "dsa", "views")
OPTIMIZERS = ("sgd", "adamw", "muon")
SCHEDULES = ("constant", "cosine")
PRECISIONS = ("float32", "bf16")
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class StudentTrainingSettings(Settings, section="student_training"):
    """How a student is pre-trained on a set; the defaults are those of Lee et al. (ICLR 2024) for their own sets.

    Attributes:
        epochs: Passes over the set.
        max_steps: Steps at most, whatever the epochs; it bounds the pre-training on a whole source set.
        steps: Steps of every pre-training, whatever the epochs, so that sets of any size take the same; None for
            `epochs`.
        batch_size: Images per step; all of them where there are fewer.
        optimizer: `sgd`; or `adamw` or `muon`, timm's, which take other learning rates.
        learning_rate: The first one.
        schedule: Of the learning rate: `constant`, or `cosine`, to 0 at the last step.
        momentum: Of SGD and Muon.
        weight_decay: The optimizer's.
        mixup: Share of the images that are mixed with another one of the batch, by a weight uniform in [0, 1]; their
            targets are mixed alike (Zhang et al., ICLR 2018, arXiv 1710.09412).
        average: Decay of the running mean of the weights that is kept in the end; 0 keeps the last weights.
        precision: Of the network's operations where that is safe: `float32`, or `bf16` on GPUs and CPUs that have
            operations for it, float32 on others; weights and loss are float32.
        augment: `none`; `flip`: each image is mirrored half of the time; `crop-flip`: it is also shifted by at most 4
            pixels; both keep the target. `dsa`: one of DSA's six operations, colours and cutout among them, on each
            batch. `views`: the image as it is or one of the views stored with it, each with the
            target stored for it.
    """

    # At most what the record of a set takes: a set that cannot be saved would be known after all its work.
    epochs: Annotated[Natural, at_most(10**6)] = 1000
    max_steps: Annotated[Count, at_most(10**8)] | None = None
    steps: Annotated[Count, at_most(10**8)] | None = None
    batch_size: Annotated[Count, at_most(10**6)] = 256
    optimizer: Annotated[str, one_of(OPTIMIZERS)] = "sgd"
    learning_rate: Annotated[Positive, at_most(10**4)] = 0.1
    schedule: Annotated[str, one_of(SCHEDULES)] = "constant"
    momentum: Fraction = 0.9
    weight_decay: Annotated[Weight, at_most(10**4)] = 1e-3
    mixup: Share = 0.0
    average: Fraction = 0.0
    precision: Annotated[str, one_of(PRECISIONS)] = "float32"
    augment: Annotated[str, one_of(AUGMENTATIONS)] = "none"

    def num_steps(self, size: int) -> int:
        """Returns the steps of a pre-training on `size` images."""
        steps = self.steps or self.epochs * size // min(self.batch_size, size)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def autocast(self, device: torch.device) -> torch.autocast:
        """Returns the context in which the network computes on a device: bf16 where asked for, and quick there."""
        return torch.autocast(
            device.type, torch.bfloat16, enabled=self.precision == "bf16" and is_quick_in_bf16(device)
        )

    def describe(self) -> dict[str, Any]:
        """Returns the recipe for using a set, for its card."""
        numbers = {name: getattr(self, name) for name in _NUMBERS if getattr(self, name) is not None}
        # What is off is not mentioned, nor how many epochs where the steps are fixed.
        idle = {*(name for name in ("mixup", "average") if not numbers[name]), *(["epochs"] if self.steps else [])}
        loss = "mean squared error of the head's output to the target"
        facts = {name: value for name, value in numbers.items() if name not in idle}
        facts |= {} if self.schedule == "constant" else {"schedule": self.schedule}
        facts |= {} if self.precision == "float32" else {"precision": self.precision}
        optimizer = "SGD" if self.optimizer == "sgd" else self.optimizer
        return {"loss": loss, "optimizer": optimizer, **facts, "augmentation": self.augment}

    def identity(self) -> dict[str, Any]:
        """Returns the settings as JSON, without later ones that are as they were before there was a choice."""
        later = {
            **{"steps": None, "optimizer": "sgd", "schedule": "constant"},
            **{"mixup": 0.0, "average": 0.0, "precision": "float32"},
        }
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}


_NUMBERS = "learning_rate momentum weight_decay epochs max_steps steps batch_size mixup average".split()


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
            with seeded(0, "tried batch"):
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

    The student is fresh and on the device of the pairs; the seed decides the order and the augmentation of images, and
    what the student itself draws.

    Raises:
        InputError: `augment` is `views`, and the pairs hold none; or the student cannot be trained on single images.
    """
    if settings.augment == "views" and not pairs.num_views:
        raise InputError(
            "student_training.augment is views, and the set holds none: make some with ssdd_hub.add_views, or choose "
            "none, flip or crop-flip"
        )
    optimizer = _build_optimizer(student, settings)
    mean = None
    if settings.average:
        kept = get_ema_multi_avg_fn(settings.average)  # type: ignore[no-untyped-call]
        mean = AveragedModel(student, multi_avg_fn=kept, use_buffers=True)
    size, steps = len(pairs), settings.num_steps(len(pairs))
    if steps and min(settings.batch_size, size) == 1:
        _, channels, _, side = pairs.batch(torch.zeros(1, dtype=torch.int64))[0].shape
        named = f"--student-training.batch-size {settings.batch_size} on {size} image(s)"
        check_batches(student, {named: 1}, in_chans=channels, image_size=side)
    student.train()
    for step in tqdm(range(steps), "pre-training", unit="step", disable=not progress):
        indices = draw_batch(size, min(settings.batch_size, size), seed, "use of the set", step)
        drawn = generator(seed, "augmentation of use", step)
        images, targets = augmented_pairs(pairs, indices, settings.augment, drawn)
        if settings.mixup:
            images, targets = mix(images, targets, settings.mixup, generator(seed, "mixup of use", step))
        with seeded_training(student, seed, "dropout of use", step), settings.autocast(images.device):
            outputs = student(images)
        loss = functional.mse_loss(outputs.to(targets.dtype), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if settings.schedule == "cosine":
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.step()
        if mean is not None:
            mean.update_parameters(student)
    if mean is not None:
        student.load_state_dict(mean.module.state_dict())
    return student.eval()


def mix(images: Tensor, targets: Tensor, share: float, drawn: torch.Generator) -> Pair:
    """Mixes a share of the images `(n, C, H, W)` with others of the batch, and their targets `(n, D)` alike."""
    others = torch.randperm(len(images), generator=drawn).to(images.device)
    chosen, weights = torch.rand(2, len(images), generator=drawn).to(images)
    weights = torch.where(chosen < share, weights, torch.ones_like(weights))
    mixed = [
        part * weight + part[others] * (1 - weight)
        for part, weight in ((images, weights[:, None, None, None]), (targets, weights[:, None]))
    ]
    return mixed[0], mixed[1]


def _build_optimizer(student: nn.Module, settings: StudentTrainingSettings) -> torch.optim.Optimizer:
    rates: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.optimizer == "sgd":
        return torch.optim.SGD(student.parameters(), momentum=settings.momentum, **rates)
    from timm.optim import create_optimizer_v2

    from ssdd_hub.models.muon import build_muon

    if settings.optimizer == "muon":
        return build_muon(student, settings.momentum, **rates)
    # Its first moment has timm's usual decay.
    built: torch.optim.Optimizer = create_optimizer_v2(student, opt="adamw", **rates)
    return built


def augmented_pairs(pairs: Pairs, indices: Tensor, augment: str, drawn: torch.Generator) -> Pair:
    """Returns some images `(n, C, H, W)`, augmented by one of `AUGMENTATIONS`, and their targets `(n, D)`."""
    if augment == "views":
        return pairs.view(indices, torch.randint(0, pairs.num_views + 1, (len(indices),), generator=drawn))
    images, targets = pairs.batch(indices)
    if augment == "none":
        return images, targets
    if augment == "dsa":
        return augment_dsa(images, drawn), targets
    views = draw_views(len(images), drawn)
    if augment == "flip":
        views[:, :2] = PADDING
    # Crops are padded with 0, which is black only before normalisation.
    return crop_flip(images - pairs.black, views) + pairs.black, targets

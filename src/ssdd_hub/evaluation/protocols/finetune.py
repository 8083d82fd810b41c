"""Fine-tuning: the whole pre-trained student is trained on labelled images of a target dataset."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from ssdd_hub.bounds import Count, Fraction, Positive, Settings, Weight, one_of
from ssdd_hub.data.augment import PADDING, crop_flip, draw_views
from ssdd_hub.data.bank import ImageBank
from ssdd_hub.errors import Check, InputError
from ssdd_hub.evaluation.protocols.base import LabelledProtocol, Measure, Pretrained
from ssdd_hub.evaluation.protocols.linear_probe import LABELS, draw_order, take_labelled
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.seeds import draw_batch, generator, seeded

AUGMENTATIONS = ("none", "flip", "crop-flip")


@dataclass(frozen=True)
class FinetuneSettings(Settings, section="finetune"):
    """How a pre-trained student is fine-tuned; the defaults are the transfer recipe of Lee et al. (ICLR 2024).

    Attributes:
        steps: Steps of SGD. The paper takes 10,000 on CIFAR-10, CIFAR-100 and TinyImageNet, and 5,000 on its other
            targets.
        batch_size: Images per step; all of them where there are fewer.
        learning_rate: SGD's, falling to 0 along a cosine.
        momentum: SGD's.
        weight_decay: SGD's.
        augment: `none`; `flip`: each image is mirrored half of the time; `crop-flip`: it is also shifted by at most 4
            pixels, with black borders.
        labels: Labelled images, a training for each entry: a share of all that have a label, in (0, 1], so that 1
            means all of them, or a count of 2 or more. They are those of the linear probe's first random draw.
    """

    steps: Count = 10000
    batch_size: Count = 256
    learning_rate: Positive = 0.01
    momentum: Fraction = 0.9
    weight_decay: Weight = 5e-4
    augment: Annotated[str, one_of(AUGMENTATIONS)] = "crop-flip"
    labels: list[float] = field(default_factory=lambda: [1.0])

    def conflicts(self) -> Iterator[Check]:
        """Yields what numbers of labels must be."""
        yield (
            LABELS.holds(self.labels),
            f"finetune.labels must be shares in (0, 1] or counts of at least 2, at least one; got {self.labels}",
        )


class FineTuning(LabelledProtocol[FinetuneSettings]):
    """Accuracy on held-out images after fine-tuning on labelled ones: the measure of the paper's tables 1 to 3.

    The student keeps its body and gets a new head, the same for all sets. What is scored is the last iterate, in eval
    mode. A held-out image of a class that the labelled images lack counts as wrong. Students without pre-training are
    trained the same way.

    Args:
        settings: See `FinetuneSettings`.
    """

    name = "finetune"

    def __call__(self, pretrained: Pretrained, data: RealData) -> list[Measure]:
        """Measures once for each number of labels.

        Raises:
            InputError: The training diverges.
        """
        return [self._measure(pretrained, data, amount) for amount in self.settings.labels]

    def _measure(self, pretrained: Pretrained, data: RealData, amount: float) -> Measure:
        known, seed = data.known(data.train), pretrained.seed
        labels = data.labels(data.train)[known]
        chosen = take_labelled(draw_order(labels, seed, draw=0), labels, amount)
        student = with_new_head(pretrained.student, count_classes(data), seed)
        fine_tune(student, data.train, known[chosen], labels[chosen], data.pixel_space, self.settings, seed)
        return Measure("accuracy", score(student, data, self.name), amount if amount <= 1 else int(amount))


def count_classes(data: RealData) -> int:
    """Returns the number of classes: one more than the largest label of the training images."""
    return int(data.labels(data.train).max()) + 1


def with_new_head(student: nn.Module, num_classes: int, seed: int) -> nn.Module:
    """Returns a copy of a student with a fresh head of `num_classes` outputs, which depends on the seed alone.

    Args:
        student: With timm's `reset_classifier`; it stays as it is.
        num_classes: Outputs of the head.
        seed: Of the head's first weights.
    """
    device = next(student.parameters()).device
    # timm draws a head where the body is, and the seeded generator is that of the CPU.
    copied = copy.deepcopy(student).cpu()
    with seeded(seed, "head for the target"):
        copied.reset_classifier(num_classes)  # type: ignore[operator]
    return copied.to(device)


def fine_tune(
    student: nn.Module,
    bank: ImageBank,
    indices: Tensor,
    labels: Tensor,
    pixel_space: PixelSpace,
    settings: FinetuneSettings,
    seed: int,
) -> nn.Module:
    """Trains a student with a head for the classes by the cross-entropy to labels.

    Args:
        student: It is changed.
        bank: Holds the images.
        indices: `(n,)`, which of them are labelled.
        labels: `(n,)`, int64, at least 0.
        pixel_space: The space in which the student sees them.
        settings: See `FinetuneSettings`.
        seed: Seed of the order of the images and of their augmentation.

    Returns:
        The student, in eval mode.

    Raises:
        InputError: The loss is not finite.
    """
    like, size = next(student.parameters()), len(indices)

    def _loss(step: int) -> Tensor:
        chosen = draw_batch(size, min(settings.batch_size, size), seed, "fine-tuning", step)
        pixels = bank.pixels[indices[chosen]].to(like.device)
        pixels = augmented(pixels, settings.augment, generator(seed, "augmentation of fine-tuning", step))
        images = pixel_space.normalise(pixels.to(like.dtype) / 255)
        return functional.cross_entropy(student(images), labels[chosen].to(like.device))

    optimizer = torch.optim.SGD(
        student.parameters(), lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    return descend(student, optimizer, _loss, settings.steps, "finetune")


def augmented(images: Tensor, kind: str, drawn: torch.Generator) -> Tensor:
    """Augments a batch by `none`, `flip` or `crop-flip`; borders are 0, black in pixels `(n, C, H, W)`."""
    if kind == "none":
        return images
    views = draw_views(len(images), drawn)
    if kind == "flip":
        views[:, :2] = PADDING
    return crop_flip(images, views)


def descend(
    student: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[int], Tensor], steps: int, settings: str
) -> nn.Module:
    """Takes steps in train mode, at a learning rate that falls from the optimizer's own to 0 along a cosine.

    Args:
        student: What is trained.
        optimizer: Over its parameters.
        loss: From the number of a step to its loss.
        steps: How many.
        settings: The prefix of the settings that the learning rate stands in.

    Returns:
        The student, in eval mode.

    Raises:
        InputError: A loss is not finite.
    """
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    student.train()
    for step in range(steps):
        value = loss(step)
        if not value.isfinite():
            raise InputError(f"the student diverges at step {step} on the target: lower --{settings}.learning-rate")
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return student.eval()


def score(student: nn.Module, data: RealData, settings: str) -> float:
    """Returns the accuracy, in `[0, 1]`, on the held-out images of known class, in the mode that the student is in.

    Args:
        student: From images in the pixel space of the data to `(n, classes)`.
        data: With labels.
        settings: The prefix of the settings that the learning rate stands in.

    Raises:
        InputError: Outputs are not finite.
    """
    known = data.known(data.heldout)
    outputs = data.apply(student, data.heldout, known)
    if not outputs.isfinite().all():
        raise InputError(f"the student diverges on {data.name}: lower --{settings}.learning-rate")
    return (outputs.argmax(1) == data.labels(data.heldout)[known]).double().mean().item()


@contextmanager
def batch_statistics(student: nn.Module) -> Iterator[None]:
    """Lets batch norms use the statistics of each batch inside the block; the running ones neither count nor change.

    Every other part keeps its mode. Without batch norms nothing changes.
    """
    norms = [module for module in student.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.training, norm.track_running_stats) for norm in norms]
    try:
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for norm, (training, tracking) in zip(norms, before, strict=True):
            norm.training, norm.track_running_stats = training, tracking

"""Fine-tuning: trains the whole pre-trained student on labelled images of a target dataset."""

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
from ssdd_hub.errors import Check
from ssdd_hub.evaluation.protocols.base import (
    LabelledProtocol,
    Measure,
    Pretrained,
    measure_accuracy,
    require_finite,
)
from ssdd_hub.evaluation.protocols.linear_probe import LABELS, draw_order, take_labelled
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.seeds import draw_batch, generator, seeded, seeded_training

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
    """Accuracy on held-out images after fine-tuning on labelled ones (Lee et al., ICLR 2024, tables 1 to 3).

    The student keeps its body and gets a new head, the same for all sets. The last iterate is scored, in eval mode. A
    held-out image of a class that the labelled images lack counts as wrong.
    """

    name = "finetune"

    def batches(self, size: int) -> dict[str, int]:
        """See `LabelledProtocol.batches`; there are always two labelled images."""
        return {"--finetune.batch-size": self.settings.batch_size}

    def __call__(self, pretrained: Pretrained, data: RealData) -> list[Measure]:
        """Measures once for each number of labels."""
        known, seed, measures = data.known(data.train), pretrained.seed, []
        labels = data.labels(data.train)[known]
        order = draw_order(labels, seed, draw=0)
        for amount in self.settings.labels:
            student = with_new_head(pretrained.student, data.num_classes, seed)
            fine_tune(student, data, known[take_labelled(order, labels, amount)], self.settings, seed)
            measures.append(score(student, data, self.name, amount))
        return measures


def with_new_head(student: nn.Module, num_classes: int, seed: int) -> nn.Module:
    """Returns a copy of a student with a fresh head of `num_classes` outputs, which depends on the seed alone."""
    device = next(student.parameters()).device
    # timm draws a head where the body is, and the seeded generator is that of the CPU.
    copied = copy.deepcopy(student).cpu()
    with seeded(seed, "head for the target"):
        copied.reset_classifier(num_classes)  # type: ignore[operator]
    return copied.to(device)


def fine_tune(student: nn.Module, data: RealData, indices: Tensor, settings: FinetuneSettings, seed: int) -> nn.Module:
    """Trains a student in place on the labels of some training images `(n,)`; returns it in eval mode."""
    like, size, labels = next(student.parameters()), len(indices), data.labels(data.train)[indices]

    def _loss(step: int) -> Tensor:
        chosen = draw_batch(size, min(settings.batch_size, size), seed, "fine-tuning", step)
        pixels = data.train.pixels[indices[chosen]].to(like.device)
        pixels = augmented(pixels, settings.augment, generator(seed, "augmentation of fine-tuning", step))
        images = data.pixel_space.normalise(pixels.to(like.dtype) / 255)
        return functional.cross_entropy(student(images), labels[chosen].to(like.device))

    optimizer = torch.optim.SGD(
        student.parameters(), lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    return descend(student, optimizer, _loss, settings.steps, "finetune", seed)


def augmented(images: Tensor, kind: str, drawn: torch.Generator) -> Tensor:
    """Augments a batch by `none`, `flip` or `crop-flip`; borders are 0, black in pixels `(n, C, H, W)`."""
    if kind == "none":
        return images
    views = draw_views(len(images), drawn)
    if kind == "flip":
        views[:, :2] = PADDING
    return crop_flip(images, views)


def descend(
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[int], Tensor],
    steps: int,
    section: str,
    seed: int,
) -> nn.Module:
    """Trains a student at a learning rate that falls to 0 along a cosine; returns it in eval mode.

    `loss` maps the number of a step to its loss; `section` holds the learning rate that is too high where it diverges;
    `seed` decides what the student itself draws.
    """
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    student.train()
    for step in range(steps):
        problem = f"the student diverges at step {step} on the target: lower --{section}.learning-rate"
        with seeded_training(student, seed, f"dropout of {section}", step):
            value = require_finite(loss(step), problem)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return student.eval()


def score(student: nn.Module, data: RealData, section: str, amount: float | None = None) -> Measure:
    """Returns the accuracy on the held-out images of known class, in the mode that the student is in.

    `section` holds the learning rate that is too high where outputs are not finite; `amount` is of labelled images.
    """
    known = data.known(data.heldout)
    problem = f"the student diverges on {data.name}: lower --{section}.learning-rate"
    outputs = require_finite(data.apply(student, data.heldout, known), problem)
    truth = data.labels(data.heldout)[known]
    return measure_accuracy(outputs.argmax(1) == truth, truth, data.num_classes, amount)


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

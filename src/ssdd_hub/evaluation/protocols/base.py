"""The interface of evaluation protocols: from a pre-trained student and real images to measures."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from ssdd_hub.errors import InputError
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.models.pretraining import Pairs

Settings = TypeVar("Settings", bound=Any)
MOST_CLASSES = 1000  # that scores are told apart by; lists of more would be longer than anyone reads
DIVERGED = "a student diverges when it is pre-trained on the set: lower --student-training.learning-rate"


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A student that was pre-trained on a set.

    Attributes:
        student: In eval mode, on the device of the data; a protocol never changes it, but works on a copy.
        build: Returns a fresh student with the same first weights, in eval mode, on the same device.
        pairs: The set as the student saw it; None when it was not pre-trained.
        seed: Seed of everything random in a protocol; the same for all sets, so that their scores can be paired.
    """

    student: nn.Module
    build: Callable[[], nn.Module]
    pairs: Pairs | None
    seed: int


@dataclass(frozen=True)
class Measure:
    """One number that a protocol gives.

    Attributes:
        metric: `mse`, `accuracy` in `[0, 1]`, or another name, described in `results.tables.METRICS`.
        value: The number.
        labels: Labelled images it was reached with: a share in (0, 1], a count, or None where there is no choice.
        by_class: Of an accuracy, that of each class, None for a class without held-out images; None where it is not
            known, as of scores that an earlier version stored.
    """

    metric: str
    value: float
    labels: float | int | None = None
    by_class: list[float | None] | None = None


@runtime_checkable
class EvaluationProtocol(Protocol):
    """A way to measure a pre-trained student.

    One that has an attribute `trains_itself`, which is true, needs no pre-trained student but `Pretrained.build`.

    Attributes:
        name: Its name in `scores.json`.
    """

    name: str

    def key(self, data: RealData) -> dict[str, Any]:
        """Returns as JSON all settings that the numbers depend on, besides the student and the data."""

    def applies(self, pretrained: Pretrained, data: RealData) -> bool:
        """Whether this student can be measured on this data."""

    def __call__(self, pretrained: Pretrained, data: RealData) -> list[Measure]:
        """Measures; the same arguments give the same numbers. An `InputError` says that a student diverged."""


class LabelledProtocol(Generic[Settings]):
    """Base of protocols with settings, a frozen dataclass, that need labels to learn from and to score by."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def key(self, data: RealData) -> dict[str, Any]:
        """Returns all settings."""
        return asdict(self.settings)

    def batches(self, size: int) -> dict[str, int]:
        """Returns the smallest batches that a student is trained on after a set of `size` images, by option."""
        return {}

    def applies(self, pretrained: Pretrained, data: RealData) -> bool:
        """Whether there are labels to learn from and to score by."""
        return data.labelled


class WholeNetwork(nn.Module):
    """A function of images with timm's interface of models: its outputs are the features."""

    def __init__(self, network: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network

    def forward_features(self, images: Tensor) -> Tensor:
        """Maps images `(n, C, H, W)` to outputs `(n, D)`."""
        return self.network(images)

    def forward_head(self, outputs: Tensor, pre_logits: bool = False) -> Tensor:
        """Returns the outputs as they are."""
        return outputs


def measure_accuracy(
    hits: Tensor, truth: Tensor, num_classes: int, amount: float | None = None, draws: int = 1
) -> Measure:
    """Returns an accuracy on held-out images, with that of each class where there are at most `MOST_CLASSES`.

    Args:
        hits: `(n,)`, how many of the `draws` classifiers are right about each image.
        truth: The classes of the images, `(n,)`, int64, in `[0, num_classes)`.
        num_classes: Number of classes.
        amount: Labelled images it was reached with: a share, a whole number, or None where there is no choice.
        draws: Classifiers that the accuracy is the mean of.
    """
    labels = amount if amount is None or amount <= 1 else int(amount)
    value = int(hits.sum()) / draws / len(truth)
    if num_classes > MOST_CLASSES:
        return Measure("accuracy", value, labels)
    right = torch.bincount(truth.cpu(), hits.cpu().double(), num_classes).tolist()
    counts = torch.bincount(truth.cpu(), minlength=num_classes).tolist()
    pairs = zip(right, counts, strict=True)
    return Measure("accuracy", value, labels, [round(part / draws / n, 4) if n else None for part, n in pairs])


def require_finite(values: Tensor, problem: str = DIVERGED) -> Tensor:
    """Returns the values, or raises an `InputError` that states the problem where one of them is not finite."""
    if not values.isfinite().all():
        raise InputError(problem)
    return values

"""Accuracy from a set alone: a fresh network is trained on images and labels of the set, and tested on real images.

This is the table that papers on labelled sets print.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import Self

from ssdd_hub.bounds import Count, Fraction, Positive, Settings, Weight, one_of
from ssdd_hub.errors import Check, InputError
from ssdd_hub.evaluation.protocols.base import LabelledProtocol, Measure, Pretrained, require_finite
from ssdd_hub.evaluation.protocols.finetune import score, with_new_head
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.models.pretraining import AUGMENTATIONS, Pairs, StudentTrainingSettings, augmented_pairs
from ssdd_hub.record import section
from ssdd_hub.seeds import draw_batch, generator, seeded_training
from ssdd_hub.selection.source import SourcePairs
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.pretrain import SetPairs
from ssdd_hub.text import show

Recipe = TypeVar("Recipe", bound=Any)
NAME = "accuracy"
LOSSES = ("hard", "soft", "mse")
SCHEDULES = ("step", "constant", "cosine")
OWN = "own"
_LEAST, _MOST = 1e-6, 1e4  # of numbers that a record states


@dataclass(frozen=True)
class AccuracySettings(Settings, section="accuracy"):
    """How a network learns the classes from a set alone; the defaults are those of DC (Zhao et al., ICLR 2021).

    Attributes:
        loss: `hard`: cross-entropy to the class of an image; `soft`: to the probabilities that its target stands for,
            the softmax of target / `temperature`, as of learned soft labels (TESLA, DATM); `mse`: mean squared error
            to the target, as in kernel methods (KIP, FRePo).
        temperature: That the targets are divided by for `soft`; None for what the record of the sets states of labels
            that their method learned (DATM), and 1 where it states none.
        epochs: Passes over the set. DC takes 300, DSA, DM and MTT take 1,000.
        max_steps: Steps at most, whatever the epochs.
        batch_size: Images per step; all of them where there are fewer.
        learning_rate: SGD's.
        learned_rate: Take the learning rate that the record of the sets states, which MTT, DATM and MKDT learn, in
            place of `learning_rate`.
        schedule: Of the learning rate: `step`, a tenth of it after half of the steps; `constant`; or `cosine`, to 0.
        momentum: SGD's.
        weight_decay: SGD's.
        augment: `own`, that of `student_training`; or `none`, `flip`, `crop-flip` or `dsa`. DC takes none, DSA, DM and
            MTT take `dsa`.
    """

    loss: Annotated[str, one_of(LOSSES)] = "hard"
    temperature: Positive | None = None
    epochs: Count = 300
    max_steps: Count | None = None
    batch_size: Count = 256
    learning_rate: Positive = 0.01
    learned_rate: bool = False
    schedule: Annotated[str, one_of(SCHEDULES)] = "step"
    momentum: Fraction = 0.9
    weight_decay: Weight = 5e-4
    augment: Annotated[str, one_of((OWN, *(name for name in AUGMENTATIONS if name != "views")))] = OWN

    def conflicts(self) -> Iterator[Check]:
        """Yields that a temperature is of soft labels."""
        yield (
            self.temperature in (1, None) or self.loss not in ("hard", "mse"),
            f"accuracy.temperature is for --accuracy.loss soft, got {self.loss}",
        )

    def of_sets(self, records: Mapping[str, Mapping[str, Any]]) -> Self:
        """Returns the settings with what the records of the sets, by name, state that their methods learned.

        Whatever is compared with the sets is then trained alike.

        Raises:
            InputError: The learning rate is to be learned, and a set states none, or sets state different ones; or
                what is stated is out of range.
        """
        learned, made = {name: section(record, "learned") for name, record in records.items()}, self
        if made.loss == "soft" and made.temperature is None:
            made = replace(made, temperature=1 / _agreed(learned, "label_scale", "temperature NUMBER", 1.0))
        if made.learned_rate:
            rate = _agreed(learned, "learning_rate", "learned-rate false --accuracy.learning-rate NUMBER")
            made = replace(made, learning_rate=rate, learned_rate=False)
        return made

    def num_steps(self, size: int) -> int:
        """Returns the steps on a set of `size` images."""
        steps = self.epochs * size // min(self.batch_size, size)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def rate(self, step: int, steps: int) -> float:
        """Returns the learning rate of a step, of so many."""
        if self.schedule == "cosine":
            return self.learning_rate * (1 + torch.cos(torch.tensor(torch.pi * step / steps)).item()) / 2
        return self.learning_rate * (0.1 if self.schedule == "step" and step > steps // 2 else 1.0)


def _agreed(learned: Mapping[str, Any], name: str, remedy: str, usual: float | None = None) -> float:
    """Returns the number that all sets state; raises an `InputError` where there is none, or it is out of range."""
    stated = {place: values.get(name, usual) for place, values in learned.items()}
    wrong = next((place for place, value in stated.items() if not _is_usable(value)), None)
    needed = f"the record of a set must state learned.{name}, a number from {_LEAST:g} to {_MOST:g}"
    if wrong is not None:
        told = "states none" if stated[wrong] is None else f"states {show(stated[wrong])}"
        raise InputError(f"{needed}, and that of {wrong} {told}: give --accuracy.{remedy}")
    if len({*stated.values()}) > 1:
        told = ", ".join(f"{place} {value:g}" for place, value in stated.items())
        raise InputError(
            f"sets are trained on alike, and they state different numbers as learned.{name} ({told}): evaluate each "
            f"alone, or give --accuracy.{remedy}"
        )
    return float(next(iter(stated.values())))


def _is_usable(value: Any) -> bool:
    # Records may be untrusted.
    return isinstance(value, int | float) and not isinstance(value, bool) and _LEAST <= value <= _MOST


class OfSetsWithLabels(LabelledProtocol[Recipe]):
    """Base of protocols that train on the labels of a set alone, whatever students are pre-trained to."""

    trains_itself = True

    def applies(self, pretrained: Pretrained, data: RealData) -> bool:
        """Whether there is a set with labels, which are the classes of the data."""
        labels = None if pretrained.pairs is None else labels_of(pretrained.pairs)
        return data.labelled and labels is not None and same_classes(_names(pretrained.pairs), data)


class Accuracy(OfSetsWithLabels[AccuracySettings]):
    """Accuracy on held-out images of a fresh network that was trained on the labelled images of a set alone.

    The network is the student before its pre-training, with a head for the classes; the last iterate is scored, in
    eval mode. Real images, such as random ones, are trained on by the same recipe. A set is measured on datasets of
    its own classes alone.

    Args:
        settings: The recipe.
        use: The recipe of pre-training, of which `augment: own` takes the augmentation.
        name: The name of the protocol in the scores.
    """

    def __init__(self, settings: AccuracySettings, use: StudentTrainingSettings, name: str = NAME) -> None:
        super().__init__(settings)
        self.name, self.augment = name, use.augment if settings.augment == OWN else settings.augment

    def key(self, data: RealData) -> dict[str, Any]:
        """Returns all settings, with the augmentation and the temperature that are meant."""
        found = {**super().key(data), "augment": self.augment, "temperature": self.settings.temperature or 1.0}
        # What `of_sets` has replaced.
        del found["learned_rate"]
        return found

    def batches(self, size: int) -> dict[str, int]:
        """See `LabelledProtocol.batches`."""
        least = min(self.settings.batch_size, size)
        return {f"--accuracy.batch-size {self.settings.batch_size} on a set of {size}": least}

    def __call__(self, pretrained: Pretrained, data: RealData) -> list[Measure]:
        """Trains a network and measures its accuracy."""
        pairs = pretrained.pairs
        labels = None if pairs is None else labels_of(pairs)
        if pairs is None or labels is None:
            raise ValueError("a network is trained on a set with labels, and this one has none: check applies first")
        student = pretrained.build()
        if self.settings.loss == "hard":
            student = with_new_head(student, count_classes(pairs, labels, data), pretrained.seed)
        elif pairs.batch(torch.zeros(1, dtype=torch.int64))[1].shape[1] < data.num_classes:
            raise InputError(f"targets of this set are not of the classes of {data.name}: give --accuracy.loss hard")
        learn(student, pairs, labels, self.settings, self.augment, pretrained.seed)
        return [score(student, data, NAME)]


def learn(
    student: nn.Module, pairs: Pairs, labels: Tensor, settings: AccuracySettings, augment: str, seed: int
) -> nn.Module:
    """Trains a student in place on images and classes `(M,)`, or targets, of a set; returns it in eval mode.

    Raises:
        InputError: It diverges.
    """
    optimizer = torch.optim.SGD(
        student.parameters(), lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    size, steps = len(pairs), settings.num_steps(len(pairs))
    student.train()
    for step in range(steps):
        indices = draw_batch(size, min(settings.batch_size, size), seed, "labels of the set", step)
        drawn = generator(seed, "augmentation of labels", step)
        images, targets = augmented_pairs(pairs, indices, augment, drawn)
        with seeded_training(student, seed, "dropout on labels", step):
            outputs = student(images)
        loss = classification_loss(outputs, targets, labels[indices].to(images.device), settings)
        require_finite(loss.detach(), f"a network diverges at step {step} on the set: lower --accuracy.learning-rate")
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step, steps)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return student.eval()


def classification_loss(outputs: Tensor, targets: Tensor, labels: Tensor, settings: AccuracySettings) -> Tensor:
    """Returns the loss of outputs `(n, C)` to targets `(n, C)` or classes `(n,)`; see `AccuracySettings.loss`."""
    if settings.loss == "mse":
        return functional.mse_loss(outputs, targets)
    if settings.loss == "hard":
        return functional.cross_entropy(outputs, labels)
    return functional.cross_entropy(outputs, (targets / (settings.temperature or 1.0)).softmax(1))


def check_labels(name: str, distilled: DistilledSet) -> None:
    """Raises an `InputError` for a set without a class for each image, from which no accuracy can be had."""
    if distilled.labels is None or bool((distilled.labels < 0).any()):
        raise InputError(
            f"the protocol accuracy trains a network on the labels of a set, and {name} has none, or not of every "
            "image: distil one with --targets.of labels, or leave the protocol out"
        )


def same_classes(names: list[str] | None, data: RealData) -> bool:
    """Whether classes of these names may be those of a dataset; unknown names may be."""
    own = data.train.label_names
    return names is None or own is None or list(names) == list(own)


def labels_of(pairs: Pairs) -> Tensor | None:
    """Returns the classes `(M,)` of a set; None where one is unknown."""
    kept = pairs.distilled if isinstance(pairs, SetPairs) else pairs.source if isinstance(pairs, SourcePairs) else None
    labels = None if kept is None else kept.labels
    return None if labels is None or bool((labels < 0).any()) else labels


def count_classes(pairs: Pairs | None, labels: Tensor, data: RealData) -> int:
    """Returns the number of classes of a set and a dataset, each of which may lack some of the other's."""
    return max(len(_names(pairs) or ()), data.num_classes, int(labels.max()) + 1)


def _names(pairs: Pairs | None) -> list[str] | None:
    kept = pairs.distilled if isinstance(pairs, SetPairs) else pairs.source if isinstance(pairs, SourcePairs) else None
    return None if kept is None else kept.label_names

"""What a protocol of evaluation is: it asks of a pre-trained student what it is worth on real images."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssdd_hub.errors import InputError
from ssdd_hub.images import ImageBank
from ssdd_hub.inputs import fingerprint_labels
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.streams import generator
from ssdd_hub.targets import Targets
from ssdd_hub.use import Pairs

Settings = TypeVar("Settings", bound=Any)


@dataclass(frozen=True, eq=False)
class RealData:
    """Real images of one dataset to measure on.

    Attributes:
        name: What it is called in scores.
        train: Images that labelled ones are drawn from.
        heldout: Images that nothing was fitted on.
        pixel_space: The space in which students see real images.
        device: Where the students are.
        heldout_targets: The teacher's targets of the held-out images, `(n, D)`, where they are known: of the source.
    """

    name: str
    train: ImageBank
    heldout: ImageBank
    pixel_space: PixelSpace
    device: torch.device
    heldout_targets: Targets | Tensor | None = None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What names the images and the targets by their content, as JSON."""
        targets = None
        if self.heldout_targets is not None:
            targets = hashlib.sha256(self.heldout_targets[:].cpu().contiguous().numpy().tobytes()).hexdigest()
        banks = {"train": self.train, "heldout": self.heldout}
        return {
            **{name: [bank.fingerprint, fingerprint_labels(bank.labels)] for name, bank in banks.items()},
            "targets": targets,
            "pixel_space": self.pixel_space.to_dict(),
        }

    @property
    def labelled(self) -> bool:
        """Whether there are labels to learn from, of two classes at least, and labels to score by."""
        known = [bank.labels[bank.labels >= 0] for bank in (self.train, self.heldout) if bank.labels is not None]
        return len(known) == 2 and bool((known[0] != known[0][:1]).any()) and len(known[1]) > 0

    def known(self, bank: ImageBank) -> Tensor:
        """Returns the indices of a bank's images of known class (label 0 or above).

        Raises:
            ValueError: The bank has no labels.
        """
        return (self.labels(bank) >= 0).nonzero()[:, 0]

    def labels(self, bank: ImageBank) -> Tensor:
        """Returns the labels of a bank, `(N,)`, int64, -1 for unknown.

        Raises:
            ValueError: The bank has no labels.
        """
        if bank.labels is None:
            raise ValueError(f"labels of {self.name} are required, and it has none: check data.labelled first")
        return bank.labels

    def images(self, bank: ImageBank, indices: Tensor | slice = slice(None)) -> Tensor:
        """Returns some images of a bank, `(n, C, H, W)`, float32, in the students' pixel space, on their device."""
        return self.pixel_space.normalise(bank.pixels[indices].to(self.device, torch.float32) / 255)

    def batches(self, bank: ImageBank, indices: Tensor | None = None, size: int = 512) -> Iterator[Tensor]:
        """Yields images of a bank, all of them by default, `size` at a time."""
        for part in torch.split(torch.arange(len(bank)) if indices is None else indices, size):
            yield self.images(bank, part)

    @torch.no_grad()
    def apply(self, function: Callable[[Tensor], Tensor], bank: ImageBank, indices: Tensor | None = None) -> Tensor:
        """Applies a network to images of a bank without a graph, a few hundred at a time.

        Args:
            function: From `(n, C, H, W)` to `(n, ...)`.
            bank: One of this data's.
            indices: Which of its images, `(n,)`; all by default.

        Returns:
            The results of all images, float32, on the CPU.
        """
        return torch.cat([function(images).float().cpu() for images in self.batches(bank, indices)])


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A student that was pre-trained on a set, and what it was made of.

    Attributes:
        student: In eval mode, on the device of the data. A protocol leaves it as it is: it works on a copy.
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
        metric: `mse`, `accuracy` in `[0, 1]`, or another name in the table of `report.METRICS`.
        value: The number.
        labels: Labelled images it was reached with: a share in (0, 1], a count, or None where there is no choice.
    """

    metric: str
    value: float
    labels: float | int | None = None


@runtime_checkable
class EvaluationProtocol(Protocol):
    """A way to measure a pre-trained student.

    Attributes:
        name: Its name in `scores.json`.
    """

    name: str

    def key(self, data: RealData) -> dict[str, Any]:
        """Returns as JSON all settings that its numbers depend on, besides the student and the data."""

    def applies(self, pretrained: Pretrained, data: RealData) -> bool:
        """Whether it can be asked of this student on this data."""

    def __call__(self, pretrained: Pretrained, data: RealData) -> list[Measure]:
        """Measures; the same arguments give the same numbers."""


class LabelledProtocol(Generic[Settings]):
    """What protocols have in common that have settings and need labels, to learn from and to score by.

    Args:
        settings: A frozen dataclass.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def key(self, data: RealData) -> dict[str, Any]:
        """Returns all settings."""
        return asdict(self.settings)

    def applies(self, pretrained: Pretrained, data: RealData) -> bool:
        """Whether there are labels to learn from and to score by."""
        return data.labelled


class TeacherError:
    """The mean squared error of the student's outputs to the teacher's targets, over held-out images and `D`.

    What the outer loss of KRR-ST aims at, on images that the distillation has not seen, and by a student trained the
    usual way.
    """

    name = "teacher_error"

    def key(self, data: RealData) -> dict[str, Any]:
        """Returns nothing: there is nothing to set."""
        return {}

    def applies(self, pretrained: Pretrained, data: RealData) -> bool:
        """Whether the teacher's targets of the held-out images are known."""
        return data.heldout_targets is not None

    def __call__(self, pretrained: Pretrained, data: RealData) -> list[Measure]:
        """Measures the error.

        Raises:
            InputError: The student's outputs are not finite.
        """
        outputs = data.apply(pretrained.student, data.heldout)
        if not outputs.isfinite().all():
            raise InputError("a student diverges when it is pre-trained on the set: lower --use.learning-rate")
        if data.heldout_targets is None:
            raise ValueError("the teacher's targets of the held-out images are required")
        return [Measure("mse", functional.mse_loss(outputs, data.heldout_targets[:].cpu()).item())]


def draw_heldout(bank: ImageBank, most: int, seed: int) -> ImageBank:
    """Returns at most so many images of a bank, drawn by seed and in their order, to measure on."""
    order = torch.randperm(len(bank), generator=generator(seed, "held-out images"))
    return bank.subset(order[:most].sort().values)

"""What an evaluation protocol is: from a pre-trained student and real images to measures."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from torch import nn

from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.models.pretraining import Pairs

Settings = TypeVar("Settings", bound=Any)


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

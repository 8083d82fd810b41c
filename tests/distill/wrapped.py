"""Wrappers around other parameterisations than they are around by default."""

from dataclasses import dataclass, field
from typing import Any

from ssdd_hub.distill.parameterisations.views import Views, ViewsSettings


@dataclass(frozen=True)
class ViewsOfDctSettings(ViewsSettings):
    """Of coarse steps, with a black pixel that is not 0."""

    of: str = "dct"
    of_args: dict[str, Any] = field(default_factory=lambda: {"luma": 40, "step": 0.1, "target_step": 0.05})
    views: int = 2
    black: list[float] | None = field(default_factory=lambda: [-1.5])


class ViewsOfDct(Views):
    """Views of images that are stored by their coefficients."""

    name = "views-of-dct"
    Settings = ViewsOfDctSettings


@dataclass(frozen=True)
class PredictedViewsSettings(ViewsSettings):
    """Of few units, which learn fast."""

    of: str = "factor"
    views: int = 2
    shift: str = "predicted"
    hidden: int = 5
    lr_shift: float = 1e-2


class PredictedViews(Views):
    """Views of small images, whose targets are predicted."""

    name = "views-predicted"
    Settings = PredictedViewsSettings


@dataclass(frozen=True)
class BoostSettings(ViewsSettings):
    """As in Boost: rotations of images and targets that are sums of shared ones, networks fitted at the end."""

    of: str = "bases"
    of_args: dict[str, Any] = field(default_factory=lambda: {"bases": 4, "factor": 2, "target_bases": 2})
    kind: str = "rotations"
    shift: str = "fitted"
    hidden: int = 4
    lr_shift: float = 0.0  # no step changes what the networks add, which is nothing, as at the start


class Boost(Views):
    """Rotations of images that share bases, as do their targets."""

    name = "boost"
    Settings = BoostSettings

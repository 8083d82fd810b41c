"""Factor: images are learned and stored at a fraction of the resolution at which they are shown.

Source: Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022, arXiv 2205.14959,
the multi-formation of section 4.1, where a stored image is cut into `factor * factor` pieces that are enlarged. Here
each piece is a row of the set, with a target of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor
from typing_extensions import Self

from ssdd_hub.bounds import at_least, at_most
from ssdd_hub.data.tiles import enlarge, shrink
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations.base import LearningRates, Parameterisation
from ssdd_hub.errors import require


@dataclass(frozen=True)
class FactorSettings(LearningRates):
    """Settings of `factor`.

    Attributes:
        factor: Sides of a shown image by those of a stored one: 2 stores 4 images in the bytes of one.
    """

    factor: Annotated[int, at_least(1), at_most(64)] = 2


class Factor(Parameterisation):
    """Small images `(M, C, H / factor, W / factor)`, enlarged bilinearly, and targets `(M, D)`."""

    name = "factor"
    citation = "Kim et al., ICML 2022, arXiv 2205.14959"
    Settings = FactorSettings
    settings: FactorSettings
    images: Tensor
    targets: Tensor

    @classmethod
    def start(cls, pairs: Pairs, settings: FactorSettings) -> Self:
        """Shrinks the images by the mean of each square."""
        height, width = pairs.images.shape[-2:]
        fits = height % settings.factor == 0 == width % settings.factor
        require((fits, f"factor must divide the {height} x {width} pixels of the images, got {settings.factor}"))
        return cls(settings, images=shrink(pairs.images, settings.factor), targets=pairs.targets)

    def forward(self, rows: Tensor | None = None) -> Pairs:
        """Returns each small image enlarged, with its target."""
        images, targets = (part if rows is None else part[rows] for part in (self.images, self.targets))
        return Pairs(enlarge(images, self.settings.factor), targets)

    def __len__(self) -> int:
        """Returns `M`."""
        return len(self.images)

    def decoding(self) -> dict[str, Any]:
        """Returns the factor."""
        return {"factor": self.settings.factor}

    @classmethod
    def shown_shape(cls, shapes: Mapping[str, tuple[int, ...]], args: Mapping[str, Any]) -> tuple[int, ...]:
        """Returns the shape with both sides times the factor."""
        channels, height, width = shapes["images"]
        factor = FactorSettings(factor=args["factor"]).factor
        return (channels, height * factor, width * factor)

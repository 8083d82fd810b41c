"""A parameterisation as another package may write it: images are stored at a lower resolution than they are shown."""

from dataclasses import dataclass

from torch.nn import functional

from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations.base import LearningRates, Parameterisation


@dataclass(frozen=True)
class TilesSettings(LearningRates):
    """Settings of the toy: shown pixels per stored one, in each direction."""

    factor: int = 2


class Tiles(Parameterisation):
    """Tiles `(M, C, H / factor, W / factor)` that are enlarged, and targets `(M, D)`."""

    name = "tiles"
    citation = "none"
    Settings = TilesSettings

    @classmethod
    def start(cls, pairs, settings):
        """Shrinks the images."""
        return cls(settings, tiles=functional.avg_pool2d(pairs.images, settings.factor), targets=pairs.targets)

    def forward(self, rows=None):
        """Returns each tile enlarged, with its target."""
        tiles, targets = (part if rows is None else part[rows] for part in (self.tiles, self.targets))
        return Pairs(functional.interpolate(tiles, scale_factor=float(self.settings.factor)), targets)

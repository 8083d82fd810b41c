"""Pixels: every image and every target is learned as it is."""

from torch import Tensor

from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations.base import Parameterisation


class Pixels(Parameterisation):
    """Images `(M, C, H, W)` and targets `(M, D)` themselves, the parameters `X_s` and `Y_s`."""

    name = "pixels"
    citation = "Lee et al., ICLR 2024, arXiv 2310.06511"
    images: Tensor
    targets: Tensor

    def forward(self, rows: Tensor | None = None) -> Pairs:
        """Returns the parameters, or some of their rows."""
        pairs = Pairs(self.images, self.targets)
        return pairs if rows is None else Pairs(*(part[rows] for part in pairs))

    def __len__(self) -> int:
        """Returns `M`."""
        return len(self.images)

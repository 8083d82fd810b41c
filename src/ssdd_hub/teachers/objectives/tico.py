"""TiCo."""

import torch
from lightly.loss import TiCoLoss
from lightly.models.modules.heads import TiCoProjectionHead
from torch import Tensor

from ssdd_hub.teachers.objectives.base import Share, Weight, in_full_precision, several_processes
from ssdd_hub.teachers.objectives.momentum import MomentumObjective
from ssdd_hub.teachers.objectives.transforms import byol_transform


class TiCo(MomentumObjective):
    """TiCo: a view agrees with the copy's other view, and projections avoid the directions that many have taken."""

    name = "tico"
    citation = (
        "Zhu et al., TiCo: Transformation Invariance and Covariance Contrast for Self-Supervised Visual "
        "Representation Learning, 2022, arXiv 2206.10698"
    )
    needs = ("momentum copy", "covariance")
    transform = staticmethod(byol_transform)
    head_class = TiCoProjectionHead
    hidden_dim = 1024
    output_dim = 256
    beta: Share = 0.9  # share of itself that the covariance keeps in a step
    rho: Weight = 8.0  # weight of the covariance term
    momentum: Share = 0.99

    def _build_parts(self) -> None:
        super()._build_parts()
        self.loss = TiCoLoss(self.beta, self.rho, gather_distributed=several_processes())
        # lightly keeps the covariance in a plain attribute, None before the first batch, which then counts as zeros.
        del self.loss.C
        self.loss.register_buffer("C", torch.zeros(self.output_dim, self.output_dim))

    def forward(self, views: list[Tensor]) -> Tensor:
        """Returns the loss of two views `(B, C, H, W)`."""
        self.move_copy()
        first, second = views
        projections = self.head(self.features(first))
        return in_full_precision(self.loss, projections, self.momentum_projection(second), self.learning)

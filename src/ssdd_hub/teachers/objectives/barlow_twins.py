"""Barlow Twins."""

from lightly.loss import BarlowTwinsLoss
from lightly.models.modules.heads import BarlowTwinsProjectionHead
from torch import nn

from ssdd_hub.teachers.objectives.base import Count, Weight, several_processes
from ssdd_hub.teachers.objectives.transforms import byol_transform
from ssdd_hub.teachers.objectives.two_views import TwoViews


class BarlowTwins(TwoViews):
    """Barlow Twins: the cross-correlation of two views' projections is driven to the identity.

    lightly has no Barlow Twins transform, and its benchmarks use BYOL's.

    Args:
        backbone: A timm model.
        feature_dim: Width of the backbone's pre-logits.
        hidden_dim: Width of the projection head's hidden layers.
        output_dim: Width of the projections.
        lambda_param: Weight of the redundancy term.
    """

    name = "barlow_twins"
    citation = (
        "Zbontar et al., Barlow Twins: Self-Supervised Learning via Redundancy Reduction, ICML 2021, arXiv 2103.03230"
    )
    transform = staticmethod(byol_transform)

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        hidden_dim: Count = 2048,
        output_dim: Count = 2048,
        lambda_param: Weight = 5e-3,
    ) -> None:
        super().__init__(
            backbone, feature_dim, hidden_dim=hidden_dim, output_dim=output_dim, lambda_param=lambda_param
        )
        self.head = BarlowTwinsProjectionHead(feature_dim, hidden_dim, output_dim)
        self.loss = BarlowTwinsLoss(lambda_param, gather_distributed=several_processes())

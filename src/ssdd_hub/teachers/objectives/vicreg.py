"""VICReg."""

from lightly.loss import VICRegLoss
from lightly.models.modules.heads import VICRegProjectionHead
from lightly.transforms import VICRegTransform
from torch import nn

from ssdd_hub.teachers.objectives.base import Count, Weight, several_processes
from ssdd_hub.teachers.objectives.two_views import TwoViews


class VICReg(TwoViews):
    """VICReg: two views agree, each dimension varies, and no two dimensions vary together.

    Args:
        backbone: A timm model.
        feature_dim: Width of the backbone's pre-logits.
        hidden_dim: Width of the projection head's hidden layers.
        output_dim: Width of the projections.
        invariance: Weight of the distance between the views.
        variance: Weight of the hinge on each dimension's standard deviation.
        covariance: Weight of the squared covariances.
    """

    name = "vicreg"
    citation = (
        "Bardes et al., VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning, "
        "ICLR 2022, arXiv 2105.04906"
    )
    transform = VICRegTransform

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        hidden_dim: Count = 2048,
        output_dim: Count = 2048,
        invariance: Weight = 25.0,
        variance: Weight = 25.0,
        covariance: Weight = 1.0,
    ) -> None:
        weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
        super().__init__(backbone, feature_dim, hidden_dim=hidden_dim, output_dim=output_dim, **weights)
        self.head = VICRegProjectionHead(feature_dim, hidden_dim, output_dim)
        self.loss = VICRegLoss(invariance, variance, covariance, gather_distributed=several_processes())

"""BYOL."""

from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead
from torch import Tensor, nn

from ssdd_hub.teachers.objectives.base import Count, Share, in_full_precision
from ssdd_hub.teachers.objectives.momentum import MomentumObjective
from ssdd_hub.teachers.objectives.transforms import byol_transform


class BYOL(MomentumObjective):
    """BYOL: a predictor maps each view's projection to the copy's projection of the other view.

    Args:
        backbone: A timm model.
        feature_dim: Width of the backbone's pre-logits.
        hidden_dim: Width of both heads' hidden layers.
        output_dim: Width of the projections.
        momentum: Share of itself that the copy keeps in a step, at the start.
    """

    name = "byol"
    citation = (
        "Grill et al., Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning, NeurIPS 2020, "
        "arXiv 2006.07733"
    )
    transform = staticmethod(byol_transform)

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        hidden_dim: Count = 1024,
        output_dim: Count = 256,
        momentum: Share = 0.99,
    ) -> None:
        super().__init__(backbone, feature_dim, momentum, hidden_dim=hidden_dim, output_dim=output_dim)
        self.add_head(*(BYOLProjectionHead(feature_dim, hidden_dim, output_dim) for _ in range(2)))
        self.predictor = BYOLPredictionHead(output_dim, hidden_dim, output_dim)
        self.loss = NegativeCosineSimilarity()

    def forward(self, views: list[Tensor]) -> Tensor:
        """Returns the loss of two views `(B, C, H, W)`."""
        self.move_copy()
        first, second = (self.predictor(self.head(self.features(view))) for view in views)
        kept_first, kept_second = (self.momentum_projection(view) for view in views)
        return 0.5 * (
            in_full_precision(self.loss, first, kept_second) + in_full_precision(self.loss, second, kept_first)
        )

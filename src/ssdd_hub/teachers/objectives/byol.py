"""BYOL."""

from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead
from torch import Tensor

from ssdd_hub.teachers.objectives.base import Share, in_full_precision
from ssdd_hub.teachers.objectives.momentum import MomentumObjective
from ssdd_hub.teachers.objectives.transforms import byol_transform


class BYOL(MomentumObjective):
    """BYOL: a predictor, as wide as the head, maps each view's projection to the copy's of the other view."""

    name = "byol"
    citation = (
        "Grill et al., Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning, NeurIPS 2020, "
        "arXiv 2006.07733"
    )
    transform = staticmethod(byol_transform)
    head_class = BYOLProjectionHead
    hidden_dim = 1024
    output_dim = 256
    momentum: Share = 0.99

    def _build_parts(self) -> None:
        super()._build_parts()
        self.predictor = BYOLPredictionHead(self.output_dim, self.hidden_dim, self.output_dim)
        self.loss = NegativeCosineSimilarity()

    def forward(self, views: list[Tensor]) -> Tensor:
        """Returns the loss of two views `(B, C, H, W)`."""
        self.move_copy()
        first, second = (self.predictor(self.head(self.features(view))) for view in views)
        kept_first, kept_second = (self.momentum_projection(view) for view in views)
        return 0.5 * (
            in_full_precision(self.loss, first, kept_second) + in_full_precision(self.loss, second, kept_first)
        )

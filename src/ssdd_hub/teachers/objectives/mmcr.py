"""MMCR."""

import torch
from lightly.loss import MMCRLoss
from lightly.models.modules.heads import MMCRProjectionHead
from lightly.transforms import MMCRTransform
from lightly.utils.dist import gather
from torch import Tensor, nn

from ssdd_hub.teachers.objectives.base import Count, Share, Weight, in_full_precision, several_processes
from ssdd_hub.teachers.objectives.momentum import MomentumObjective


class MMCR(MomentumObjective):
    """MMCR: the mean projections of the images' views fill the space, which they do when each image's views agree.

    Args:
        backbone: A timm model.
        feature_dim: Width of the backbone's pre-logits.
        hidden_dim: Width of the projection head's hidden layers.
        output_dim: Width of the projections.
        lmda: Weight of the term that compresses each image's views.
        momentum: Share of itself that the copy keeps in a step, at the start.
    """

    name = "mmcr"
    citation = (
        "Yerxa et al., Learning Efficient Coding of Natural Images with Maximum Manifold Capacity Representations, "
        "NeurIPS 2023, arXiv 2303.03307"
    )
    transform = MMCRTransform

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        hidden_dim: Count = 512,
        output_dim: Count = 128,
        lmda: Weight = 5e-3,
        momentum: Share = 0.996,
    ) -> None:
        super().__init__(backbone, feature_dim, momentum, hidden_dim=hidden_dim, output_dim=output_dim, lmda=lmda)
        self.add_head(*(MMCRProjectionHead(feature_dim, hidden_dim, output_dim) for _ in range(2)))
        self.loss = MMCRLoss(lmda)

    def forward(self, views: list[Tensor]) -> Tensor:
        """Returns the loss of several views `(B, C, H, W)`."""
        self.move_copy()
        projections = torch.stack([self.head(self.features(view)) for view in views], 1)  # (B, views, D)
        kept = torch.stack([self.momentum_projection(view) for view in views], 1)
        if several_processes():
            projections, kept = torch.cat(gather(projections)), torch.cat(gather(kept))
        return in_full_precision(self.loss, projections, kept)

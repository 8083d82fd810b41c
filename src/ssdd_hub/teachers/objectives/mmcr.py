"""MMCR."""

import torch
from lightly.loss import MMCRLoss
from lightly.models.modules.heads import MMCRProjectionHead
from lightly.transforms import MMCRTransform
from lightly.utils.dist import gather
from torch import Tensor

from ssdd_hub.teachers.objectives.base import Share, Weight, in_full_precision, several_processes
from ssdd_hub.teachers.objectives.momentum import MomentumObjective


class MMCR(MomentumObjective):
    """MMCR: the mean projections of the images' views fill the space, which they do when each image's views agree."""

    name = "mmcr"
    citation = (
        "Yerxa et al., Learning Efficient Coding of Natural Images with Maximum Manifold Capacity Representations, "
        "NeurIPS 2023, arXiv 2303.03307"
    )
    transform = MMCRTransform
    head_class = MMCRProjectionHead
    hidden_dim = 512
    output_dim = 128
    lmda: Weight = 5e-3  # weight of the term that compresses each image's views
    momentum: Share = 0.996

    def _build_parts(self) -> None:
        super()._build_parts()
        self.loss = MMCRLoss(self.lmda)

    def forward(self, views: list[Tensor]) -> Tensor:
        """Returns the loss of several views `(B, C, H, W)`."""
        self.move_copy()
        projections = torch.stack([self.head(self.features(view)) for view in views], 1)  # (B, views, D)
        kept = torch.stack([self.momentum_projection(view) for view in views], 1)
        if several_processes():
            projections, kept = torch.cat(gather(projections)), torch.cat(gather(kept))
        return in_full_precision(self.loss, projections, kept)

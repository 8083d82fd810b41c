"""Barlow Twins."""

from lightly.loss import BarlowTwinsLoss
from lightly.models.modules.heads import BarlowTwinsProjectionHead

from ssdd_hub.teachers.objectives.base import Weight, several_processes
from ssdd_hub.teachers.objectives.joint_embedding import JointEmbedding
from ssdd_hub.teachers.objectives.transforms import byol_transform


class BarlowTwins(JointEmbedding):
    """Barlow Twins: the cross-correlation of two views' projections is driven to the identity.

    lightly has no Barlow Twins transform, and its benchmarks use BYOL's.
    """

    name = "barlow_twins"
    citation = (
        "Zbontar et al., Barlow Twins: Self-Supervised Learning via Redundancy Reduction, ICML 2021, arXiv 2103.03230"
    )
    transform = staticmethod(byol_transform)
    head_class = BarlowTwinsProjectionHead
    lambda_param: Weight = 5e-3  # weight of the redundancy term

    def _build_parts(self) -> None:
        super()._build_parts()
        self.loss = BarlowTwinsLoss(self.lambda_param, gather_distributed=several_processes())

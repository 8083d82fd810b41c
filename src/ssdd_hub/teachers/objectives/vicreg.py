"""VICReg."""

from lightly.loss import VICRegLoss
from lightly.models.modules.heads import VICRegProjectionHead
from lightly.transforms import VICRegTransform

from ssdd_hub.teachers.objectives.base import Weight, several_processes
from ssdd_hub.teachers.objectives.joint_embedding import JointEmbedding


class VICReg(JointEmbedding):
    """VICReg: two views agree, each dimension varies, and no two dimensions vary together."""

    name = "vicreg"
    citation = (
        "Bardes et al., VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning, "
        "ICLR 2022, arXiv 2105.04906"
    )
    transform = VICRegTransform
    head_class = VICRegProjectionHead
    invariance: Weight = 25.0  # weight of the distance between the views
    variance: Weight = 25.0  # weight of the hinge on each dimension's standard deviation
    covariance: Weight = 1.0  # weight of the squared covariances

    def _build_parts(self) -> None:
        super()._build_parts()
        weights = (self.invariance, self.variance, self.covariance)
        self.loss = VICRegLoss(*weights, gather_distributed=several_processes())

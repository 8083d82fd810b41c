"""SimSiam and FastSiam."""

import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import SimSiamPredictionHead, SimSiamProjectionHead
from lightly.transforms import FastSiamTransform, SimSiamTransform
from torch import Tensor

from ssdd_hub.teachers.objectives.base import Count, in_full_precision
from ssdd_hub.teachers.objectives.joint_embedding import JointEmbedding


class SimSiam(JointEmbedding):
    """SimSiam: a predictor maps each view's projection to the other's, through which no gradient flows."""

    name = "simsiam"
    citation = "Chen and He, Exploring Simple Siamese Representation Learning, CVPR 2021, arXiv 2011.10566"
    transform = SimSiamTransform
    head_class = SimSiamProjectionHead
    prediction_dim: Count = 512  # width of the prediction head's hidden layer

    def _build_parts(self) -> None:
        super()._build_parts()
        self.predictor = SimSiamPredictionHead(self.output_dim, self.prediction_dim, self.output_dim)
        self.loss = NegativeCosineSimilarity()

    def forward(self, views: list[Tensor]) -> Tensor:
        """Returns the loss of two views `(B, C, H, W)` or more; each predicts the mean of the others."""
        projections = [self.head(self.features(view)) for view in views]
        predictions = [self.predictor(projection) for projection in projections]
        return in_full_precision(self._compare, projections, predictions)

    def _compare(self, projections: list[Tensor], predictions: list[Tensor]) -> Tensor:
        losses = []
        for index, prediction in enumerate(predictions):
            others = torch.stack(projections[:index] + projections[index + 1 :]).mean(0)
            losses.append(self.loss(prediction, others.detach()))
        return torch.stack(losses).mean()


class FastSiam(SimSiam):
    """FastSiam: SimSiam with several views, whose mean is a steadier thing to predict."""

    name = "fastsiam"
    citation = (
        "Pototzky et al., FastSiam: Resource-Efficient Self-supervised Learning on a Single GPU, GCPR 2022, "
        "doi 10.1007/978-3-031-16788-1_4"
    )
    transform = FastSiamTransform

"""SimSiam and FastSiam."""

import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import SimSiamPredictionHead, SimSiamProjectionHead
from lightly.transforms import FastSiamTransform, SimSiamTransform
from torch import Tensor, nn

from ssdd_hub.teachers.objectives.base import Count, Objective, in_full_precision


class SimSiam(Objective):
    """SimSiam: a predictor maps each view's projection to the other's, through which no gradient flows.

    Args:
        backbone: A timm model.
        feature_dim: Width of the backbone's pre-logits.
        hidden_dim: Width of the projection head's hidden layers.
        output_dim: Width of the projections.
        prediction_dim: Width of the prediction head's hidden layer.
    """

    name = "simsiam"
    citation = "Chen and He, Exploring Simple Siamese Representation Learning, CVPR 2021, arXiv 2011.10566"
    transform = SimSiamTransform

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        hidden_dim: Count = 2048,
        output_dim: Count = 2048,
        prediction_dim: Count = 512,
    ) -> None:
        widths = {"hidden_dim": hidden_dim, "output_dim": output_dim, "prediction_dim": prediction_dim}
        super().__init__(backbone, feature_dim, **widths)
        self.head = SimSiamProjectionHead(feature_dim, hidden_dim, output_dim)
        self.predictor = SimSiamPredictionHead(output_dim, prediction_dim, output_dim)
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
    """FastSiam: SimSiam with several views, whose mean is a steadier thing to predict.

    Args:
        backbone: A timm model.
        feature_dim: Width of the backbone's pre-logits.
        hidden_dim: Width of the projection head's hidden layers.
        output_dim: Width of the projections.
        prediction_dim: Width of the prediction head's hidden layer.
    """

    name = "fastsiam"
    citation = (
        "Pototzky et al., FastSiam: Resource-Efficient Self-supervised Learning on a Single GPU, GCPR 2022, "
        "doi 10.1007/978-3-031-16788-1_4"
    )
    transform = FastSiamTransform

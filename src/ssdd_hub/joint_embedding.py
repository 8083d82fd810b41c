"""Objectives that compare the projections of an image's views and keep nothing but their heads."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from lightly.loss import BarlowTwinsLoss, DCLLoss, LeJEPALoss, NegativeCosineSimilarity, NTXentLoss, VICRegLoss
from lightly.models.modules.heads import (
    BarlowTwinsProjectionHead,
    LeJEPAProjectionHead,
    SimCLRProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
    VICRegProjectionHead,
)
from lightly.transforms import FastSiamTransform, SimCLRTransform, SimSiamTransform, VICRegTransform
from torch import Tensor, nn

from ssdd_hub.errors import InputError
from ssdd_hub.objective import (
    LARGEST_SMALL,
    Count,
    Objective,
    Positive,
    Share,
    Views,
    Weight,
    in_full_precision,
    several_processes,
)
from ssdd_hub.views import byol_transform, dino_transform


class TwoViews(Objective):
    """The common form: a head projects two views, and a loss compares the two projections.

    A subclass sets `head` and `loss` in its `__init__`.
    """

    head: nn.Module
    loss: nn.Module

    def forward(self, views: list[Tensor]) -> Tensor:
        """Returns the loss of two views `(B, C, H, W)`."""
        first, second = (self.head(self.features(view)) for view in views)
        return in_full_precision(self.loss, first, second)


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


class SimCLR(TwoViews):
    """SimCLR: an image's views find each other among the views of the whole batch.

    Args:
        backbone: A timm model.
        feature_dim: Width of the backbone's pre-logits.
        hidden_dim: Width of the projection head's hidden layer.
        output_dim: Width of the projections.
        temperature: Divides the cosine similarities; lightly's ImageNet benchmark takes 0.1.
    """

    name = "simclr"
    citation = (
        "Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020, "
        "arXiv 2002.05709"
    )
    transform = SimCLRTransform
    criterion: ClassVar[Callable[..., nn.Module]] = NTXentLoss

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        hidden_dim: Count = 512,
        output_dim: Count = 128,
        temperature: Positive = 0.5,
    ) -> None:
        super().__init__(backbone, feature_dim, hidden_dim=hidden_dim, output_dim=output_dim, temperature=temperature)
        self.head = SimCLRProjectionHead(feature_dim, hidden_dim, output_dim)
        self.loss = self.criterion(temperature=temperature, gather_distributed=several_processes())


class DCL(SimCLR):
    """Decoupled contrastive learning: SimCLR without the positive pair among the negatives.

    Args:
        backbone: A timm model.
        feature_dim: Width of the backbone's pre-logits.
        hidden_dim: Width of the projection head's hidden layer.
        output_dim: Width of the projections.
        temperature: Divides the cosine similarities.
    """

    name = "dcl"
    citation = "Yeh et al., Decoupled Contrastive Learning, ECCV 2022, arXiv 2110.06848"
    criterion = DCLLoss

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        hidden_dim: Count = 512,
        output_dim: Count = 128,
        temperature: Positive = 0.1,
    ) -> None:
        super().__init__(backbone, feature_dim, hidden_dim, output_dim, temperature)


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


class LeJEPA(Objective):
    """LeJEPA: views agree with the mean of the global ones, and projections are distributed like a Gaussian.

    It needs neither a momentum copy nor a stopped gradient.

    Args:
        backbone: A timm model.
        feature_dim: Width of the backbone's pre-logits.
        hidden_dim: Width of the projection head's hidden layers.
        output_dim: Width of the projections.
        lambda_param: Weight of the Gaussian term, in `[0, 1]`; the agreement has the rest.
        num_vectors: Random directions in which the distribution is looked at.
    """

    name = "lejepa"
    citation = (
        "Balestriero and LeCun, LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics, "
        "2025, arXiv 2511.08544"
    )
    optimizer = "adamw"

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        hidden_dim: Count = 2048,
        output_dim: Count = 64,
        lambda_param: Share = 0.05,
        num_vectors: Count = 1024,
    ) -> None:
        weights = {"lambda_param": lambda_param, "num_vectors": num_vectors}
        super().__init__(backbone, feature_dim, hidden_dim=hidden_dim, output_dim=output_dim, **weights)
        self.head = LeJEPAProjectionHead(feature_dim, hidden_dim, output_dim)
        self.loss = LeJEPALoss(lambda_param, gather_distributed=several_processes(), sigreg_num_vectors=num_vectors)

    def forward(self, views: list[Tensor]) -> Tensor:
        """Returns the loss of two global views and at least one local view, `(B, C, H, W)` each."""
        projections = torch.stack([self.head(self.features(view)) for view in views])  # (views, B, D)
        return in_full_precision(self._compare, projections)

    def _compare(self, projections: Tensor) -> Tensor:
        loss: Tensor = self.loss(global_proj=projections[:2], local_proj=projections[2:])
        return loss

    def build_transform(self, normalize: dict[str, list[float]], image_size: int, **view_args: Any) -> Views:
        """Returns lightly's DINO transform with the method's scales; small images have 2 local views of their size."""
        if view_args.get("n_local_views", 1) < 1:
            raise InputError(f"lejepa needs a local view at least, got n_local_views={view_args['n_local_views']}")
        method: dict[str, Any] = {"global_crop_scale": (0.3, 1.0), "local_crop_scale": (0.05, 0.3)}
        if image_size <= LARGEST_SMALL:
            method |= {"n_local_views": 2, "local_crop_size": image_size}
        else:
            method |= {"gaussian_blur": (0.5, 0.5, 0.5)}
        return dino_transform(self, normalize, image_size, **{**method, **view_args})

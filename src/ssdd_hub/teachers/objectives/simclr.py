"""SimCLR, and the same with the decoupled contrastive loss (DCL)."""

from collections.abc import Callable
from typing import ClassVar

from lightly.loss import DCLLoss, NTXentLoss
from lightly.models.modules.heads import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from torch import nn

from ssdd_hub.teachers.objectives.base import Count, Positive, several_processes
from ssdd_hub.teachers.objectives.two_views import TwoViews


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

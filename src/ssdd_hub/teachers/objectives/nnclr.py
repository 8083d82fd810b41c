"""NNCLR."""

from lightly.loss import NTXentLoss
from lightly.models.modules import NNMemoryBankModule
from lightly.models.modules.heads import NNCLRPredictionHead, NNCLRProjectionHead
from lightly.transforms import SimCLRTransform
from torch import Tensor, nn

from ssdd_hub.teachers.objectives.base import (
    Count,
    Objective,
    Positive,
    in_full_precision,
    keep_buffers,
    several_processes,
)


class NNCLR(Objective):
    """NNCLR: a view finds the nearest neighbour, in a bank of earlier images, of the other view.

    Args:
        backbone: A timm model.
        feature_dim: Width of the backbone's pre-logits.
        hidden_dim: Width of the projection head's hidden layers.
        output_dim: Width of the projections.
        prediction_dim: Width of the prediction head's hidden layer.
        temperature: Divides the cosine similarities.
        bank_size: Projections kept.
    """

    name = "nnclr"
    citation = (
        "Dwibedi et al., With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning of Visual "
        "Representations, ICCV 2021, arXiv 2104.14548"
    )
    needs = ("memory bank",)
    transform = SimCLRTransform

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        hidden_dim: Count = 2048,
        output_dim: Count = 256,
        prediction_dim: Count = 4096,
        temperature: Positive = 0.5,
        bank_size: Count = 4096,
    ) -> None:
        widths = {"hidden_dim": hidden_dim, "output_dim": output_dim, "prediction_dim": prediction_dim}
        super().__init__(backbone, feature_dim, **widths, temperature=temperature, bank_size=bank_size)
        self.head = NNCLRProjectionHead(feature_dim, hidden_dim, output_dim)
        self.predictor = NNCLRPredictionHead(output_dim, prediction_dim, output_dim)
        self.bank = NNMemoryBankModule((bank_size, output_dim))
        self.bank.gather_distributed = several_processes()
        keep_buffers(self.bank)
        self.loss = NTXentLoss(temperature=temperature, gather_distributed=several_processes())

    def forward(self, views: list[Tensor]) -> Tensor:
        """Returns the loss of two views `(B, C, H, W)`; the second view's projections enter the bank."""
        first, second = (self.head(self.features(view)) for view in views)
        return in_full_precision(self._compare, first, second, self.predictor(first), self.predictor(second))

    def _compare(self, first: Tensor, second: Tensor, from_first: Tensor, from_second: Tensor) -> Tensor:
        near_first = self.bank(first.detach(), update=False)
        near_second = self.bank(second.detach(), update=self.learning)
        loss: Tensor = 0.5 * (self.loss(near_first, from_second) + self.loss(near_second, from_first))
        return loss

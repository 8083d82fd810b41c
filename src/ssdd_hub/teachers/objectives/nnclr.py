"""NNCLR."""

from lightly.loss import NTXentLoss
from lightly.models.modules import NNMemoryBankModule
from lightly.models.modules.heads import NNCLRPredictionHead, NNCLRProjectionHead
from lightly.transforms import SimCLRTransform
from torch import Tensor

from ssdd_hub.teachers.objectives.base import Count, Positive, in_full_precision, keep_buffers, several_processes
from ssdd_hub.teachers.objectives.joint_embedding import JointEmbedding


class NNCLR(JointEmbedding):
    """NNCLR: a view finds the nearest neighbour, in a bank of earlier images, of the other view."""

    name = "nnclr"
    citation = (
        "Dwibedi et al., With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning of Visual "
        "Representations, ICCV 2021, arXiv 2104.14548"
    )
    needs = ("memory bank",)
    transform = SimCLRTransform
    head_class = NNCLRProjectionHead
    output_dim = 256
    prediction_dim: Count = 4096  # width of the prediction head's hidden layer
    temperature: Positive = 0.5  # divides the cosine similarities
    bank_size: Count = 4096  # projections kept

    def _build_parts(self) -> None:
        super()._build_parts()
        self.predictor = NNCLRPredictionHead(self.output_dim, self.prediction_dim, self.output_dim)
        self.bank = NNMemoryBankModule((self.bank_size, self.output_dim))
        self.bank.gather_distributed = several_processes()
        keep_buffers(self.bank)
        self.loss = NTXentLoss(self.temperature, gather_distributed=several_processes())

    def forward(self, views: list[Tensor]) -> Tensor:
        """Returns the loss of two views `(B, C, H, W)`; the second view's projections enter the bank."""
        first, second = (self.head(self.features(view)) for view in views)
        return in_full_precision(self._compare, first, second, self.predictor(first), self.predictor(second))

    def _compare(self, first: Tensor, second: Tensor, from_first: Tensor, from_second: Tensor) -> Tensor:
        near_first = self.bank(first.detach(), update=False)
        near_second = self.bank(second.detach(), update=self.learning)
        loss: Tensor = 0.5 * (self.loss(near_first, from_second) + self.loss(near_second, from_first))
        return loss

"""MoCo v2."""

from lightly.loss import NTXentLoss
from lightly.models.modules.heads import MoCoProjectionHead
from lightly.models.modules.memory_bank import MemoryBankModule
from lightly.models.utils import batch_shuffle, batch_unshuffle
from lightly.transforms import MoCoV2Transform
from torch import Tensor

from ssdd_hub.teachers.objectives.base import (
    Count,
    Positive,
    Share,
    in_full_precision,
    keep_buffers,
    several_processes,
)
from ssdd_hub.teachers.objectives.momentum import MomentumObjective


class TrainingBank(MemoryBankModule):  # type: ignore[misc]
    """lightly's memory bank, updated in training mode only: lightly's loss updates it wherever there are gradients."""

    def forward(
        self, output: Tensor, labels: Tensor | None = None, update: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the output and what the bank keeps, `(D, bank_size)`, before the output enters it."""
        found: tuple[Tensor, Tensor | None] = super().forward(output, labels, update and self.training)
        return found


class MoCo(MomentumObjective):
    """MoCo v2 with a symmetric loss: a view finds the copy's other view among a bank of earlier images.

    Over several processes the copy's batches are shuffled, so that batch statistics do not give the pairs away.
    """

    name = "moco"
    citation = "Chen et al., Improved Baselines with Momentum Contrastive Learning, 2020, arXiv 2003.04297"
    needs = ("momentum copy", "memory bank")
    transform = MoCoV2Transform
    head_class = MoCoProjectionHead
    hidden_dim = 512
    output_dim = 128
    temperature: Positive = 0.1  # divides the cosine similarities
    bank_size: Count = 4096  # projections kept
    momentum: Share = 0.99

    def _build_parts(self) -> None:
        super()._build_parts()
        self.loss = NTXentLoss(self.temperature, gather_distributed=several_processes())
        self.loss.memory_bank = TrainingBank((self.bank_size, self.output_dim), several_processes())
        keep_buffers(self.loss)

    def forward(self, views: list[Tensor]) -> Tensor:
        """Returns the loss of two views `(B, C, H, W)`."""
        self.move_copy()
        self.loss.train(self.learning)
        first, second = views
        return 0.5 * (self._one_side(first, second) + self._one_side(second, first))

    def _one_side(self, query: Tensor, key: Tensor) -> Tensor:
        queries = self.head(self.features(query))
        if several_processes():
            shuffled, order = batch_shuffle(key, distributed=True)
            keys = batch_unshuffle(self.momentum_projection(shuffled), order, distributed=True)
        else:
            keys = self.momentum_projection(key)
        return in_full_precision(self.loss, queries, keys)

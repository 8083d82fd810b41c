"""MoCo v2."""

from lightly.loss import NTXentLoss
from lightly.models.modules.heads import MoCoProjectionHead
from lightly.models.modules.memory_bank import MemoryBankModule
from lightly.models.utils import batch_shuffle, batch_unshuffle
from lightly.transforms import MoCoV2Transform
from torch import Tensor, nn

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
    """lightly's memory bank, moved in training mode only: lightly's loss asks for it wherever there are gradients."""

    def forward(
        self, output: Tensor, labels: Tensor | None = None, update: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the output and what the bank keeps, `(D, bank_size)`, before the output enters it."""
        found: tuple[Tensor, Tensor | None] = super().forward(output, labels, update and self.training)
        return found


class MoCo(MomentumObjective):
    """MoCo v2 with a symmetric loss: a view finds the copy's other view among a bank of earlier images.

    Over several processes the copy's batches are shuffled, so that batch statistics do not give the pairs away.

    Args:
        backbone: A timm model.
        feature_dim: Width of the backbone's pre-logits.
        hidden_dim: Width of the projection head's hidden layer.
        output_dim: Width of the projections.
        temperature: Divides the cosine similarities.
        bank_size: Projections kept.
        momentum: Share of itself that the copy keeps in a step, at the start.
    """

    name = "moco"
    citation = "Chen et al., Improved Baselines with Momentum Contrastive Learning, 2020, arXiv 2003.04297"
    needs = ("momentum copy", "memory bank")
    transform = MoCoV2Transform

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        hidden_dim: Count = 512,
        output_dim: Count = 128,
        temperature: Positive = 0.1,
        bank_size: Count = 4096,
        momentum: Share = 0.99,
    ) -> None:
        widths = {"hidden_dim": hidden_dim, "output_dim": output_dim}
        super().__init__(backbone, feature_dim, momentum, **widths, temperature=temperature, bank_size=bank_size)
        self.add_head(*(MoCoProjectionHead(feature_dim, hidden_dim, output_dim) for _ in range(2)))
        self.loss = NTXentLoss(temperature, gather_distributed=several_processes())
        self.loss.memory_bank = TrainingBank((bank_size, output_dim), several_processes())
        keep_buffers(self.loss)

    def forward(self, views: list[Tensor]) -> Tensor:
        """Returns the loss of two views `(B, C, H, W)`."""
        self.move_copy()
        self.loss.train(self.learning)
        first, second = views
        losses = [self._one_side(query, key) for query, key in ((first, second), (second, first))]
        return 0.5 * (losses[0] + losses[1])

    def _one_side(self, query: Tensor, key: Tensor) -> Tensor:
        queries = self.head(self.features(query))
        if several_processes():
            shuffled, order = batch_shuffle(key, distributed=True)
            keys = batch_unshuffle(self.momentum_projection(shuffled), order, distributed=True)
        else:
            keys = self.momentum_projection(key)
        return in_full_precision(self.loss, queries, keys)

"""SimCLR, and the same with the decoupled contrastive loss (DCL)."""

from collections.abc import Callable
from typing import ClassVar

from lightly.loss import DCLLoss, NTXentLoss
from lightly.models.modules.heads import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from torch import nn

from ssdd_hub.teachers.objectives.base import Positive, several_processes
from ssdd_hub.teachers.objectives.joint_embedding import JointEmbedding


class SimCLR(JointEmbedding):
    """SimCLR: an image's views find each other among the views of the whole batch."""

    name = "simclr"
    citation = (
        "Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020, "
        "arXiv 2002.05709"
    )
    transform = SimCLRTransform
    head_class = SimCLRProjectionHead
    loss_class: ClassVar[Callable[..., nn.Module]] = NTXentLoss
    hidden_dim = 512
    output_dim = 128
    temperature: Positive = 0.5  # divides the cosine similarities; lightly's ImageNet benchmark takes 0.1

    def _build_parts(self) -> None:
        super()._build_parts()
        self.loss = self.loss_class(self.temperature, gather_distributed=several_processes())


class DCL(SimCLR):
    """Decoupled contrastive learning: SimCLR without the positive pair among the negatives."""

    name = "dcl"
    citation = "Yeh et al., Decoupled Contrastive Learning, ECCV 2022, arXiv 2110.06848"
    loss_class = DCLLoss
    temperature = 0.1

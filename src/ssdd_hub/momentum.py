"""Objectives with a momentum copy: a slow average of the network, which gives what the network learns from."""

import copy
from typing import Any, ClassVar

import torch
from lightly.loss import MMCRLoss, NegativeCosineSimilarity, NTXentLoss, TiCoLoss
from lightly.models.modules.heads import (
    BYOLPredictionHead,
    BYOLProjectionHead,
    MMCRProjectionHead,
    MoCoProjectionHead,
    TiCoProjectionHead,
)
from lightly.models.modules.memory_bank import MemoryBankModule
from lightly.models.utils import batch_shuffle, batch_unshuffle, deactivate_requires_grad, update_momentum
from lightly.transforms import MMCRTransform, MoCoV2Transform
from lightly.utils.dist import gather
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn

from ssdd_hub.backbones import pre_logits
from ssdd_hub.objective import (
    Count,
    Objective,
    Positive,
    Share,
    Weight,
    in_full_precision,
    keep_buffers,
    several_processes,
)
from ssdd_hub.views import byol_transform


class MomentumObjective(Objective):
    """The common form: backbone and projection head have a copy that follows them and gets no gradient.

    The copy moves at the start of `forward`, as in lightly's examples. Its momentum rises from the setting to 1 along
    a cosine, for which `schedule` has to be called.

    Args:
        backbone: A timm model.
        feature_dim: Width of the backbone's pre-logits.
        momentum: Share of itself that the copy keeps in a step, at the start.
        **settings: The subclass's other settings.
    """

    needs: ClassVar[tuple[str, ...]] = ("momentum copy",)

    head: nn.Module
    momentum_head: nn.Module
    loss: nn.Module

    def __init__(self, backbone: nn.Module, feature_dim: int, momentum: float, **settings: Any) -> None:
        super().__init__(backbone, feature_dim, **settings, momentum=momentum)
        self.momentum = momentum
        self.momentum_backbone = copy.deepcopy(backbone)
        deactivate_requires_grad(self.momentum_backbone)

    def add_head(self, head: nn.Module, momentum_head: nn.Module) -> None:
        """Takes the projection head and the module that becomes its copy."""
        self.head, self.momentum_head = head, momentum_head
        self.momentum_head.load_state_dict(head.state_dict())
        deactivate_requires_grad(self.momentum_head)

    def schedule(self, step: int, steps_per_epoch: int, num_steps: int) -> None:
        """Sets the momentum of the next step; the arguments are those of `Objective.schedule`."""
        super().schedule(step, steps_per_epoch, num_steps)
        self.momentum = cosine_schedule(step, num_steps, self.settings["momentum"], 1.0)

    def move_copy(self) -> None:
        """Moves the copy towards the network, where state may move."""
        if self.learning:
            update_momentum(self.backbone, self.momentum_backbone, self.momentum)
            update_momentum(self.head, self.momentum_head, self.momentum)

    @torch.no_grad()
    def momentum_projection(self, images: Tensor) -> Tensor:
        """Returns the copy's projections of one view: `(B, C, H, W)` to `(B, D)`."""
        projections: Tensor = self.momentum_head(pre_logits(self.momentum_backbone, images))
        return projections


class BYOL(MomentumObjective):
    """BYOL: a predictor maps each view's projection to the copy's projection of the other view.

    Args:
        backbone: A timm model.
        feature_dim: Width of the backbone's pre-logits.
        hidden_dim: Width of both heads' hidden layers.
        output_dim: Width of the projections.
        momentum: Share of itself that the copy keeps in a step, at the start.
    """

    name = "byol"
    citation = (
        "Grill et al., Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning, NeurIPS 2020, "
        "arXiv 2006.07733"
    )
    transform = staticmethod(byol_transform)

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        hidden_dim: Count = 1024,
        output_dim: Count = 256,
        momentum: Share = 0.99,
    ) -> None:
        super().__init__(backbone, feature_dim, momentum, hidden_dim=hidden_dim, output_dim=output_dim)
        self.add_head(*(BYOLProjectionHead(feature_dim, hidden_dim, output_dim) for _ in range(2)))
        self.predictor = BYOLPredictionHead(output_dim, hidden_dim, output_dim)
        self.loss = NegativeCosineSimilarity()

    def forward(self, views: list[Tensor]) -> Tensor:
        """Returns the loss of two views `(B, C, H, W)`."""
        self.move_copy()
        first, second = (self.predictor(self.head(self.features(view))) for view in views)
        kept_first, kept_second = (self.momentum_projection(view) for view in views)
        return 0.5 * (
            in_full_precision(self.loss, first, kept_second) + in_full_precision(self.loss, second, kept_first)
        )


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


class TiCo(MomentumObjective):
    """TiCo: a view agrees with the copy's other view, and projections avoid the directions that many have taken.

    Args:
        backbone: A timm model.
        feature_dim: Width of the backbone's pre-logits.
        hidden_dim: Width of the projection head's hidden layer.
        output_dim: Width of the projections.
        beta: Share of itself that the covariance keeps in a step.
        rho: Weight of the covariance term.
        momentum: Share of itself that the copy keeps in a step, at the start.
    """

    name = "tico"
    citation = (
        "Zhu et al., TiCo: Transformation Invariance and Covariance Contrast for Self-Supervised Visual "
        "Representation Learning, 2022, arXiv 2206.10698"
    )
    needs = ("momentum copy", "covariance")
    transform = staticmethod(byol_transform)

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        hidden_dim: Count = 1024,
        output_dim: Count = 256,
        beta: Share = 0.9,
        rho: Weight = 8.0,
        momentum: Share = 0.99,
    ) -> None:
        widths = {"hidden_dim": hidden_dim, "output_dim": output_dim}
        super().__init__(backbone, feature_dim, momentum, **widths, beta=beta, rho=rho)
        self.add_head(*(TiCoProjectionHead(feature_dim, hidden_dim, output_dim) for _ in range(2)))
        self.loss = TiCoLoss(beta, rho, gather_distributed=several_processes())
        # lightly keeps the covariance in a plain attribute, None before the first batch, which then counts as zeros.
        del self.loss.C
        self.loss.register_buffer("C", torch.zeros(output_dim, output_dim))

    def forward(self, views: list[Tensor]) -> Tensor:
        """Returns the loss of two views `(B, C, H, W)`."""
        self.move_copy()
        first, second = views
        projections = self.head(self.features(first))
        return in_full_precision(self.loss, projections, self.momentum_projection(second), self.learning)


class MMCR(MomentumObjective):
    """MMCR: the mean projections of the images' views fill the space, which they do when each image's views agree.

    Args:
        backbone: A timm model.
        feature_dim: Width of the backbone's pre-logits.
        hidden_dim: Width of the projection head's hidden layers.
        output_dim: Width of the projections.
        lmda: Weight of the term that compresses each image's views.
        momentum: Share of itself that the copy keeps in a step, at the start.
    """

    name = "mmcr"
    citation = (
        "Yerxa et al., Learning Efficient Coding of Natural Images with Maximum Manifold Capacity Representations, "
        "NeurIPS 2023, arXiv 2303.03307"
    )
    transform = MMCRTransform

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        hidden_dim: Count = 512,
        output_dim: Count = 128,
        lmda: Weight = 5e-3,
        momentum: Share = 0.996,
    ) -> None:
        super().__init__(backbone, feature_dim, momentum, hidden_dim=hidden_dim, output_dim=output_dim, lmda=lmda)
        self.add_head(*(MMCRProjectionHead(feature_dim, hidden_dim, output_dim) for _ in range(2)))
        self.loss = MMCRLoss(lmda)

    def forward(self, views: list[Tensor]) -> Tensor:
        """Returns the loss of several views `(B, C, H, W)`."""
        self.move_copy()
        projections = torch.stack([self.head(self.features(view)) for view in views], 1)  # (B, views, D)
        kept = torch.stack([self.momentum_projection(view) for view in views], 1)
        if several_processes():
            projections, kept = torch.cat(gather(projections)), torch.cat(gather(kept))
        return in_full_precision(self.loss, projections, kept)

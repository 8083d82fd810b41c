"""DINO: self-distillation, in which the momentum copy's outputs are targets as if they were classes."""

import warnings
from typing import Any

from lightly.loss import DINOLoss
from lightly.models.modules.heads import DINOProjectionHead
from torch import Tensor

from ssdd_hub.teachers.objectives.base import LARGEST_SMALL, Natural, Positive, Share, Views, in_full_precision
from ssdd_hub.teachers.objectives.momentum import MomentumObjective
from ssdd_hub.teachers.objectives.transforms import dino_transform


class CentredLoss(DINOLoss):  # type: ignore[misc]
    """lightly's loss, whose centre moves in training mode only."""

    def update_center(self, teacher_out: Tensor) -> None:
        """Moves the centre towards the mean of the copy's outputs `(views, B, D)`."""
        if self.training:
            super().update_center(teacher_out)


class DINO(MomentumObjective):
    """DINO: each view predicts the copy's sharpened and centred outputs of the two global views.

    The last layer is fixed in the first epoch. Smaller, local views need a backbone that takes several sizes. The
    paper takes an `output_dim` of 65,536 for ImageNet.
    """

    name = "dino"
    citation = "Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021, arXiv 2104.14294"
    needs = ("momentum copy", "centre")
    batch_norm: bool = True  # in the head; the paper has none for vision transformers
    teacher_temp: Positive = 0.04  # of the copy's outputs after the warm-up, which starts at 0.04; 0.07 in the paper
    warmup_epochs: Natural = 30
    momentum: Share = 0.99

    head: DINOProjectionHead

    def _build_parts(self) -> None:
        super()._build_parts()
        self.loss = CentredLoss(self.output_dim, 0.04, self.teacher_temp, self.warmup_epochs)

    def build_head(self) -> DINOProjectionHead:
        """Returns a new projection head."""
        widths = {"hidden_dim": self.hidden_dim, "output_dim": self.output_dim}
        with warnings.catch_warnings():
            # lightly's head uses a function of torch's that has a newer form.
            warnings.filterwarnings("ignore", ".*weight_norm.* is deprecated", FutureWarning)
            return DINOProjectionHead(self.feature_dim, **widths, batch_norm=self.batch_norm, freeze_last_layer=1)

    def forward(self, views: list[Tensor]) -> Tensor:
        """Returns the loss of two global views `(B, C, H, W)`, and of local ones of any size."""
        self.move_copy()
        predictions = [self.head(self.features(view)) for view in views]
        outputs = [self.momentum_projection(view) for view in views[:2]]
        self.loss.train(self.learning)
        return in_full_precision(self.loss, outputs, predictions, epoch=self.epoch or 0)

    def after_backward(self) -> None:
        """Drops the gradients of the last layer in the first epoch."""
        if self.epoch is not None:
            self.head.cancel_last_layer_gradients(self.epoch)

    def build_transform(self, normalize: dict[str, list[float]], image_size: int, **view_args: Any) -> Views:
        """Returns lightly's transform: two global views of small images, for others six local ones besides."""
        local = {"n_local_views": 0} if image_size <= LARGEST_SMALL else {}
        return dino_transform(self, normalize, image_size, **{**local, **view_args})

"""LeJEPA."""

from typing import Any

import torch
from lightly.loss import LeJEPALoss
from lightly.models.modules.heads import LeJEPAProjectionHead
from torch import Tensor, nn

from ssdd_hub.errors import InputError
from ssdd_hub.teachers.objectives.base import (
    LARGEST_SMALL,
    Count,
    Objective,
    Share,
    Views,
    in_full_precision,
    several_processes,
)
from ssdd_hub.teachers.objectives.transforms import dino_transform


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

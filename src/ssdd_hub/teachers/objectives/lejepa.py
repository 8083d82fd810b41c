"""LeJEPA."""

from typing import Any

import torch
from lightly.loss import LeJEPALoss
from lightly.models.modules.heads import LeJEPAProjectionHead
from torch import Tensor

from ssdd_hub.errors import InputError
from ssdd_hub.teachers.objectives.base import LARGEST_SMALL, Count, Share, Views, in_full_precision, several_processes
from ssdd_hub.teachers.objectives.joint_embedding import JointEmbedding
from ssdd_hub.teachers.objectives.transforms import dino_transform


class LeJEPA(JointEmbedding):
    """LeJEPA: views agree with the mean of the global ones, and projections are distributed like a Gaussian.

    It needs neither a momentum copy nor a stopped gradient.
    """

    name = "lejepa"
    citation = (
        "Balestriero and LeCun, LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics, "
        "2025, arXiv 2511.08544"
    )
    optimizer = "adamw"
    head_class = LeJEPAProjectionHead
    output_dim = 64
    lambda_param: Share = 0.05  # weight of the Gaussian term; that of the agreement is 1 - lambda_param
    num_vectors: Count = 1024  # random directions in which the distribution is compared

    def _build_parts(self) -> None:
        super()._build_parts()
        gather = several_processes()
        self.loss = LeJEPALoss(self.lambda_param, gather_distributed=gather, sigreg_num_vectors=self.num_vectors)

    def forward(self, views: list[Tensor]) -> Tensor:
        """Returns the loss of two global views and at least one local view, `(B, C, H, W)` each."""
        projections = torch.stack([self.head(self.features(view)) for view in views])  # (views, B, D)
        return in_full_precision(self.loss, global_proj=projections[:2], local_proj=projections[2:])

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

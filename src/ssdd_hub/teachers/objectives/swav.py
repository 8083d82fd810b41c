"""SwaV."""

from typing import Any

import torch
import torch.distributed as dist
from lightly.loss import SwaVLoss
from lightly.models.modules.heads import SwaVProjectionHead, SwaVPrototypes
from lightly.models.modules.memory_bank import MemoryBankModule
from lightly.transforms import SwaVTransform
from torch import Tensor, nn
from torch.nn import functional

from ssdd_hub.errors import InputError
from ssdd_hub.teachers.objectives.base import (
    LARGEST_SMALL,
    Natural,
    Positive,
    Several,
    Views,
    in_full_precision,
    keep_buffers,
    several_processes,
)
from ssdd_hub.teachers.objectives.joint_embedding import JointEmbedding
from ssdd_hub.teachers.objectives.transforms import check_crops, local_crop_size


class SwaV(JointEmbedding):
    """SwaV: each view predicts to which prototypes the other views of its image were assigned, evenly over a batch.

    The first two views are assigned; smaller ones, where there are any, only predict. Prototypes are fixed in the
    first epoch. A batch with few images per prototype is assigned together with a queue of earlier ones, once full.
    """

    name = "swav"
    citation = (
        "Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, NeurIPS 2020, "
        "arXiv 2006.09882"
    )
    needs = ("prototypes", "queue on request")
    head_class = SwaVProjectionHead
    hidden_dim = 512
    output_dim = 128
    num_prototypes: Several = 512
    temperature: Positive = 0.1  # divides the scores that predict
    epsilon: Positive = 0.05  # smoothness of the assignment
    queue_length: Natural = 0  # projections kept of each of the two views; 3840 in the paper for batches of 256

    queued: Tensor

    def _build_parts(self) -> None:
        super()._build_parts()
        gather = several_processes()
        self.prototypes = SwaVPrototypes(self.output_dim, self.num_prototypes)
        self.loss = SwaVLoss(self.temperature, sinkhorn_epsilon=self.epsilon, sinkhorn_gather_distributed=gather)
        shape = (self.queue_length, self.output_dim)
        self.queues = nn.ModuleList(MemoryBankModule(shape, gather) for _ in range(2 if self.queue_length else 0))
        keep_buffers(self.queues)
        self.register_buffer("queued", torch.zeros((), dtype=torch.long))

    def forward(self, views: list[Tensor]) -> Tensor:
        """Returns the loss of two views `(B, C, H, W)`, and of further ones of any size."""
        if self.learning:
            self.prototypes.normalize()
        projections = [functional.normalize(self.head(self.features(view)), dim=1) for view in views]
        scores = [self.prototypes(projection) for projection in projections]
        queued = self._score_queues(projections[:2], update=self.learning)
        return in_full_precision(self.loss, scores[:2], scores[2:], queued).squeeze()

    @torch.no_grad()
    def _score_queues(self, projections: list[Tensor], update: bool) -> list[Tensor] | None:
        """Returns the scores of this process's share of what the queues hold, and puts projections into them."""
        if not self.queues:
            return None
        pairs = zip(self.queues, projections, strict=True)
        kept = [queue(part.detach(), update=update)[1].T for queue, part in pairs]
        full = int(self.queued) >= len(kept[0])
        rank, world = (dist.get_rank(), dist.get_world_size()) if several_processes() else (0, 1)
        if update:
            self.queued += world * len(projections[0])
        return [self.prototypes(part[rank::world]) for part in kept] if full else None

    def after_backward(self) -> None:
        """Drops the gradients of the prototypes in the first epoch."""
        if self.epoch == 0:
            for parameter in self.prototypes.parameters():
                parameter.grad = None

    def build_transform(self, normalize: dict[str, list[float]], image_size: int, **view_args: Any) -> Views:
        """Returns lightly's transform: two views of small images, for others six smaller ones besides."""
        if image_size <= LARGEST_SMALL:
            crops: dict[str, Any] = {"crop_sizes": (image_size,), "crop_counts": (2,), "gaussian_blur": 0.0}
            crops |= {"crop_min_scales": (0.14,), "crop_max_scales": (1.0,)}
        else:
            crops = {"crop_sizes": (image_size, local_crop_size(self.backbone, image_size)), "crop_counts": (2, 6)}
        arguments = {**crops, **view_args}
        sizes, counts = arguments["crop_sizes"], arguments["crop_counts"]
        if sizes[0] != image_size or counts[0] != 2:
            raise InputError(
                f"swav needs two views of {image_size} pixels, the images' size, before smaller ones, got crop_sizes "
                f"{list(sizes)} with crop_counts {list(counts)}"
            )
        for size in sizes[1:]:
            check_crops(self, len(normalize["mean"]), image_size, size)
        transform: Views = SwaVTransform(normalize=normalize, **arguments)
        return transform

"""The base class of objectives with a momentum copy, an exponential moving average of the network."""

import copy
from typing import ClassVar

import torch
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn

from ssdd_hub.models.features import pre_logits
from ssdd_hub.teachers.objectives.base import Share
from ssdd_hub.teachers.objectives.joint_embedding import JointEmbedding


class MomentumObjective(JointEmbedding):
    """Backbone and projection head have a copy that follows them and gets no gradient.

    The copy moves at the start of `forward`, as in lightly's examples. Its momentum rises to 1 along a cosine, for
    which `schedule` has to be called.
    """

    needs: ClassVar[tuple[str, ...]] = ("momentum copy",)
    momentum: Share  # of itself that the copy keeps in a step; as a setting, at the start

    momentum_head: nn.Module

    def _build_parts(self) -> None:
        self.momentum_backbone = copy.deepcopy(self.backbone)
        super()._build_parts()
        # A new head rather than a deep copy, which torch refuses of a head with weight normalisation.
        self.momentum_head = self.build_head()
        self.momentum_head.load_state_dict(self.head.state_dict())
        for copied in (self.momentum_backbone, self.momentum_head):
            deactivate_requires_grad(copied)

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

"""The form of the objectives with a momentum copy, a slow average of the network."""

import copy
from typing import Any, ClassVar

import torch
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn

from ssdd_hub.models.features import pre_logits
from ssdd_hub.teachers.objectives.base import Objective


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

"""The base class of joint-embedding objectives, which compare projections of the views of an image."""

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from ssdd_hub.teachers.objectives.base import Count, Objective, in_full_precision


class JointEmbedding(Objective):
    """A projection head maps the features of each view, and a loss compares the projections, by default of two views.

    A subclass sets `head_class` and builds `loss` in its `_build_parts`.
    """

    head_class: ClassVar[Callable[..., nn.Module]]  # takes the widths of its input, hidden layers and output
    hidden_dim: Count = 2048  # width of the head's hidden layers
    output_dim: Count = 2048  # width of the projections

    head: nn.Module
    loss: nn.Module

    def _build_parts(self) -> None:
        self.head = self.build_head()

    def build_head(self) -> nn.Module:
        """Returns a new projection head."""
        return self.head_class(self.feature_dim, self.hidden_dim, self.output_dim)

    def forward(self, views: list[Tensor]) -> Tensor:
        """Returns the loss of two views `(B, C, H, W)`."""
        first, second = (self.head(self.features(view)) for view in views)
        return in_full_precision(self.loss, first, second)

"""The form of the objectives that compare the projections of two views."""

from torch import Tensor, nn

from ssdd_hub.teachers.objectives.base import Objective, in_full_precision


class TwoViews(Objective):
    """The common form: a head projects two views, and a loss compares the two projections.

    A subclass sets `head` and `loss` in its `__init__`.
    """

    head: nn.Module
    loss: nn.Module

    def forward(self, views: list[Tensor]) -> Tensor:
        """Returns the loss of two views `(B, C, H, W)`."""
        first, second = (self.head(self.features(view)) for view in views)
        return in_full_precision(self.loss, first, second)

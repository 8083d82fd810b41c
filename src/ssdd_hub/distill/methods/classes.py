"""Class labels as targets: the check of methods that need them, and the cross-entropy."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssdd_hub.distill.method import Problem
from ssdd_hub.errors import InputError


def require_classes(problem: Problem, what: str, otherwise: str) -> None:
    """Raises an `InputError` where the targets of the real images are not class labels."""
    if not problem.has_classes:
        raise InputError(
            f"{what} is for class labels as targets, and these are a teacher's features: pass --targets.of labels (in "
            f"Python, a problem whose source has labels and no teacher), or {otherwise}"
        )


class CrossEntropy(nn.Module):
    """Mean cross-entropy of `softmax(scale · prediction)` with the classes that the largest entries of targets name.

    Args:
        scale: First value of the scale, the reciprocal of a temperature; above 0.
        learned: Whether the logarithm of the scale is learned.
    """

    def __init__(self, scale: float, learned: bool = False) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale), dtype=torch.float64), requires_grad=learned)

    def forward(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """Returns the loss of predictions `(B, C)`, given the targets `(B, C)` of the images."""
        return functional.cross_entropy(self.log_scale.exp() * prediction, targets.argmax(1))

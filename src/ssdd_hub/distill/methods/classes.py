"""Targets that stand for classes, and losses of predictions that are for these alone."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssdd_hub.distill.method import Problem
from ssdd_hub.errors import InputError


def are_classes(targets: Tensor) -> bool:
    """Whether targets `(n, C)` are one-hot vectors whose mean was subtracted: in each, one entry alone is positive."""
    return targets.shape[1] > 1 and bool(((targets > 0).sum(1) == 1).all())


def has_classes(problem: Problem) -> bool:
    """Whether the targets of the real images, of which one batch is looked at, are of classes."""
    return are_classes(problem.whole_batch(0).targets)


def require_classes(problem: Problem, method: str, otherwise: str) -> None:
    """Raises an `InputError` where the targets of the real images are not of classes."""
    if not has_classes(problem):
        raise InputError(
            f"the cross-entropy of {method} is for class labels as targets, and these are a teacher's features: take "
            f"the class labels of the source, or {otherwise}"
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

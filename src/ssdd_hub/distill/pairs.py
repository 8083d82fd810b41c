"""The images and targets of a set: all that a method sees of a parameterisation."""

from typing import NamedTuple

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """Images with their targets.

    Attributes:
        images: `(M, C, H, W)`, in the students' pixel space; of a batch of real images `(B, C, H, W)`.
        targets: `(M, D)`; `(B, D)`.
    """

    images: Tensor
    targets: Tensor

    def detached(self) -> "Pairs":
        """Returns the same values without a graph, in the same memory."""
        return Pairs(self.images.detach(), self.targets.detach())

    def leaves(self) -> "Pairs":
        """Returns the same values as leaves of a new graph, in which gradients can be taken."""
        return Pairs(self.images.detach().requires_grad_(), self.targets.detach().requires_grad_())

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Pairs":
        """Returns the same values on a device and in a type."""
        return Pairs(self.images.to(device, dtype), self.targets.to(device, dtype))

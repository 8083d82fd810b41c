"""Micro-batches: how many images pass a student at a time, and whether activations are kept or recomputed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ssdd_hub.runs.machine import free_memory, kept_bytes

# On the CPU, activations of so many images stay in the caches; more are slower, not faster.
CPU_PART = 128
SHARE = 0.5  # of the free memory, where no budget is given


@dataclass(frozen=True)
class MicroBatches:
    """How a batch passes a student: `size` images at a time at most, with activations kept or recomputed."""

    size: int
    recompute: bool

    def split(self, images: Tensor) -> tuple[Tensor, ...]:
        """Returns parts of at most `size` images, of two sizes at most, so that few shapes are compiled."""
        return torch.tensor_split(images, -(-len(images) // self.size))

    def smaller(self) -> "MicroBatches | None":
        """Returns parts that need less memory; None where there are none."""
        if not self.recompute:
            return MicroBatches(self.size, recompute=True)
        return MicroBatches(-(-self.size // 2), recompute=True) if self.size > 1 else None


def plan_micro_batches(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    size: int | None = None,
    budget: int | None = None,
    real: int = 0,
) -> MicroBatches:
    """Plans how images `(M, C, H, W)` pass a student, so that the activations that are kept fit a budget in bytes.

    `size` images at a time: None for `CPU_PART` on the CPU, and for as many as the budget allows elsewhere, where also
    `real` images pass, of which no activations are kept. A budget of None is half of the free memory.
    """
    budget = int(free_memory(images.device) * SHARE) if budget is None else budget
    # Two images less one: weights, which count once, cancel.
    each = max(1, kept_bytes(forward, images[[0, 0]]) - kept_bytes(forward, images[:1]))
    recompute = each * len(images) > budget
    if size is None:
        size = CPU_PART if images.device.type == "cpu" else max(len(images), real)
    # While a part is computed it needs about twice what is kept of it.
    return MicroBatches(max(1, min(size, budget // (2 * each))) if recompute else size, recompute)

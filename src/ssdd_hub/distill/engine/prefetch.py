"""Batches prepared ahead, on a second stream of the GPU."""

import torch
from torch import Tensor

from ssdd_hub.distill.batches import Batches


class Ahead:
    """Batches of a run of `steps`, of which the next one is prepared while the present step is computed."""

    def __init__(self, batches: Batches, steps: int) -> None:
        self._batches, self._steps = batches, steps
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._ready: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, step: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        """See `Batches.__call__`."""
        now = torch.cuda.current_stream()
        batch = self._ready.pop((step, rank, world), None) or self._prepare(step, rank, world)
        now.wait_stream(self._stream)
        for tensor in batch:
            # Else the allocator could give its memory to the next batch while this step still reads it.
            tensor.record_stream(now)
        if step + 1 < self._steps:
            self._ready = {(step + 1, rank, world): self._prepare(step + 1, rank, world)}
        return batch

    def _prepare(self, step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
        with torch.cuda.stream(self._stream):
            return self._batches(step, rank, world)

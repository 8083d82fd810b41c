"""The next batch, prepared on a GPU while the present step is computed."""

import torch
from torch import Tensor

from ssdd_hub.distill.batches import Batches


class Ahead:
    """Prepares the batch of the next step on a GPU while the present step is computed.

    Args:
        batches: Gives them; a batch is a function of its step alone.
        steps: Steps of the run; no batch after the last is prepared.
    """

    def __init__(self, batches: Batches, steps: int) -> None:
        self._batches, self._steps = batches, steps
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._ready: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, step: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        """Returns one process's slice: images `(b, C, H, W)` and targets `(b, D)`."""
        now = torch.cuda.current_stream()
        batch = self._ready.pop((step, rank, world), None) or self._prepare(step, rank, world)
        now.wait_stream(self._stream)
        for tensor in batch:
            # Its memory must not serve the next batch before this step is done with it.
            tensor.record_stream(now)
        if step + 1 < self._steps:
            self._ready = {(step + 1, rank, world): self._prepare(step + 1, rank, world)}
        return batch

    def _prepare(self, step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
        with torch.cuda.stream(self._stream):
            return self._batches(step, rank, world)

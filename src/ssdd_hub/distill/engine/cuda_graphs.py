"""What a function launches on a GPU, recorded once and launched again as a whole: a CUDA graph."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

Results = TypeVar("Results")
# Calls before the one that is recorded: they compile, and let libraries choose and keep their work space.
WARM_UP = 3


class CannotRecord(RuntimeError):
    """A function cannot be recorded; it can be called as before."""


class Recorded(Generic[Results]):
    """Calls a function by launching again what it launched when it was recorded.

    It reads the same tensors each time, and leaves its results in the same ones: what is to be kept must be copied.

    Args:
        function: Takes nothing; reads and writes tensors that stay where they are. It is called a few times.

    Raises:
        CannotRecord: It waits for the GPU, or does what else cannot be recorded.
        RuntimeError: The memory is full.
    """

    def __init__(self, function: Callable[[], Results]) -> None:
        now, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(now)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                function()
        now.wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self._graph):
                self._results = function()
        except RuntimeError as error:
            if should_reduce_batch_size(error):
                raise
            raise CannotRecord(f"what is computed cannot be recorded as a CUDA graph ({error})") from error

    def __call__(self) -> Results:
        """Does it again; the results are valid until the next call."""
        self._graph.replay()
        return self._results


def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copies tensors into tensors of the same shapes."""
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def pack(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Moves tensors into one block of memory for each of their types, which can be copied at once.

    Args:
        tensors: Parameters or buffers, dense; each keeps its values, shape and strides, in the block.

    Returns:
        The blocks, one-dimensional, types in the order of their first tensors.
    """
    blocks = []
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        own = [tensor for tensor in tensors if tensor.dtype == dtype]
        block = own[0].new_empty(sum(tensor.numel() for tensor in own))
        places: tuple[Tensor, ...] = torch.split(block, [tensor.numel() for tensor in own])
        for tensor, place in zip(own, places, strict=True):
            view = place.as_strided(tensor.shape, tensor.stride(), place.storage_offset())
            view.copy_(tensor.detach())
            tensor.data = view
        blocks.append(block)
    return blocks

"""CUDA graphs: the kernels that a function launches on a GPU, recorded once and launched again as a whole.

A step launches hundreds of small kernels, and each launch costs the host more time than many of them run.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
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
    """A recorded function, which reads and writes the same tensors each time: what is to be kept must be copied.

    Raises:
        CannotRecord: It waits for the GPU, or does something else that cannot be recorded.
        RuntimeError: The memory is full.
    """

    def __init__(self, function: Callable[[], Results]) -> None:
        # On a side stream, as PyTorch's documentation asks: the capture itself runs on one.
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
        """Replays the graph; the results are valid until the next call."""
        self._graph.replay()
        return self._results


class SideStream:
    """A second stream of a GPU, whose work fills the gaps of the first; without effect where it is off."""

    def __init__(self, on: bool) -> None:
        self._stream = torch.cuda.Stream() if on else None  # type: ignore[no-untyped-call]

    def use(self) -> AbstractContextManager[None]:
        """Launches a block on this stream, after all that was launched before."""
        if self._stream is None:
            return nullcontext()
        self._stream.wait_stream(torch.cuda.current_stream())
        return torch.cuda.stream(self._stream)

    def join(self) -> None:
        """Lets the current stream wait for this one."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)


def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copies tensors into tensors of the same shapes."""
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def pack(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Moves dense tensors into one block of memory per type, so that a student is copied by two or three launches.

    Each tensor keeps its values, shape and strides. Returns the one-dimensional blocks, in the order of first types.
    """
    blocks = []
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        own = [tensor for tensor in tensors if tensor.dtype == dtype]
        block = own[0].new_empty(sum(tensor.numel() for tensor in own))
        places: tuple[Tensor, ...] = torch.split(block, [tensor.numel() for tensor in own])
        for tensor, place in zip(own, places, strict=True):
            view = place.as_strided(tensor.shape, tensor.stride(), place.storage_offset())
            view.copy_(tensor.detach())
            # The parameter stays the same object, which optimisers hold, and now reads the block.
            tensor.data = view
        blocks.append(block)
    return blocks

"""Batches of views of the source images: batch `step` is a pure function of `(seed, step)`."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssdd_hub.data.device import gather, keep_on_device
from ssdd_hub.errors import InputError
from ssdd_hub.seeds import derive_seed, draw_batch, generators_kept, seeded
from ssdd_hub.teachers.device_views import DeviceViews
from ssdd_hub.teachers.objectives.base import Views
from ssdd_hub.text import first_line


class ViewBatches(Dataset[list[Tensor]]):
    """The part of process `rank` of `world` of each batch; an image's views do not depend on the number of processes.

    `pixels` are `(N, C, H, W)`, uint8, on the CPU; `batch_size` counts the images of all processes.
    """

    def __init__(
        self, pixels: Tensor, views: Views, batch_size: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self.pixels = pixels
        self.views = views
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.part = slice(rank * batch_size // world, (rank + 1) * batch_size // world)

    def __getitem__(self, step: int) -> list[Tensor]:
        """Returns one tensor `(batch_size / world, C, H, W)` per view."""
        views = []
        with generators_kept():
            for position, index in enumerate(self.draw(step).tolist(), start=self.part.start):
                seed = derive_seed(self.seed, "views", step, position)
                random.seed(seed)
                np.random.seed(seed % 2**32)
                torch.manual_seed(seed)
                views.append(self.views(_as_pil(self.pixels[index])))
        return [torch.stack(list(same)) for same in zip(*views, strict=True)]

    def draw(self, step: int) -> Tensor:
        """Returns the indices of this process's images."""
        return draw_batch(len(self.pixels), self.batch_size, self.seed, "pretrain batch", step)[self.part]

    def load(self, steps: range, workers: int, pin_memory: bool = False) -> Iterable[list[Tensor]]:
        """Yields the batches of some steps, made ahead by worker processes.

        Raises:
            InputError: The system starts none, or one ends without an error of its own.
        """
        try:
            yield from DataLoader(self, batch_size=None, sampler=steps, num_workers=workers, pin_memory=pin_memory)
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
                raise
            raise InputError(
                f"the processes that make views cannot work ({first_line(error)}): where shared memory (/dev/shm), "
                "memory or open files are scarce, pass --teacher-training.workers 0, which changes no view"
            ) from error


class DeviceViewBatches(ViewBatches):
    """The same images, each batch's views made on a device at once; views depend on the number of processes.

    Pixels of at most `device.RESIDENT` bytes are kept on a GPU, so that a step never waits for the host. `views` is a
    lightly transform, see `DeviceViews`.
    """

    def __init__(self, *args: Any, device: torch.device | str = "cpu") -> None:
        super().__init__(*args)
        self.device_views = DeviceViews(self.views)
        self.device = torch.device(device)
        self.pixels = keep_on_device(self.pixels, self.device)

    def __getitem__(self, step: int) -> list[Tensor]:
        """Returns one tensor `(batch_size / world, C, H, W)` per view, on the device."""
        pixels = gather(self.pixels, self.draw(step), self.device)
        with seeded(self.seed, "views", step, self.rank):
            return self.device_views(pixels)

    def load(self, steps: range, workers: int, pin_memory: bool = False) -> Iterable[list[Tensor]]:
        """Returns the batches of some steps, each made when it is needed."""
        return (self[step] for step in steps)


@contextmanager
def leave_cores_to(workers: int) -> Iterator[None]:
    """Runs torch on the cores that loader workers leave free; threads that must share a core wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - workers))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _as_pil(pixels: Tensor) -> Image.Image:
    array = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)

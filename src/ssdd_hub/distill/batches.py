"""Batches of real images with their targets: batch `s` is a pure function of `(seed, s)`."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ssdd_hub.data.augment import crop_flip, draw_views
from ssdd_hub.data.bank import ImageBank
from ssdd_hub.data.device import copy_async, gather, keep_on_device, may_stay
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.seeds import draw_batch, generator
from ssdd_hub.targets.cache import FeatureCache, fixed_views
from ssdd_hub.targets.compute import StandInCache
from ssdd_hub.targets.labels import LabelCache
from ssdd_hub.targets.targets import Targets
from ssdd_hub.targets.transform import TargetTransform
from ssdd_hub.teachers.teacher import Teacher


class Batches(Protocol):
    """The real batch of each outer step."""

    def __call__(self, step: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        """Returns one process's slice: images `(b, C, H, W)` and targets `(b, D)`, on the device of the students."""


class ReadAhead:
    """A thread that reads rows from the disk into the system's memory before a step asks for them.

    What it reads is dropped: the step reads it again, then from memory, so a batch is the same without it. Of a disk
    that is slower than the steps no more than `MOST` readings are waited for.
    """

    MOST = 256

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "read-ahead")
        self._begun = deque[Future[object]]()

    def __call__(self, read: Callable[[], object]) -> None:
        """Begins a reading; its errors come again where the step reads."""
        while self._begun and self._begun[0].done():
            self._begun.popleft()
        if len(self._begun) < self.MOST:
            self._begun.append(self._pool.submit(read))

    def wait(self) -> None:
        """Waits for all readings that have begun."""
        for each in self._begun:
            each.exception()


@dataclass(kw_only=True)
class RealBatches:
    """Base of all kinds of batches. On a GPU, pixels and targets with room for them are kept there.

    Attributes:
        pixels: `(N, C, H, W)`, uint8.
        pixel_space: The space in which students see real images.
        batch_size: Images `B` of a batch, over all processes.
        seed: Seed of the run.
        device: Where the batches go.
        dtype: Type of images and targets.
        on_disk: Whether pixels or targets are: a thread then reads those of the next step during the present one.
    """

    pixels: Tensor
    pixel_space: PixelSpace
    batch_size: int
    seed: int
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    on_disk: bool = False

    def __post_init__(self) -> None:
        self.pixels = keep_on_device(self.pixels, self.device)
        self.ahead = ReadAhead() if self.on_disk else None

    def rows(self, step: int) -> Tensor:
        """Returns the indices `(B,)` of the images of a step, over all processes."""
        return draw_batch(len(self.pixels), self.batch_size, self.seed, "real batch", step)

    def read_ahead(self, step: int, rank: int = 0, world: int = 1) -> None:
        """Begins to read from the disk what a step will ask for."""
        if self.ahead:
            mine = self._mine(rank, world)
            self.ahead(lambda: self._read(step, self.rows(step)[mine], mine))

    def _mine(self, rank: int, world: int) -> slice:
        return slice(rank * self.batch_size // world, (rank + 1) * self.batch_size // world)

    def _take(self, step: int, rank: int, world: int) -> tuple[slice, Tensor, Tensor]:
        """Returns this process's slice of the batch, its indices, and its pixels in `[0, 1]`."""
        mine = self._mine(rank, world)
        self.read_ahead(step + 1, rank, world)
        indices = self.rows(step)[mine]
        return mine, indices, self._pixels(indices)

    def _read(self, step: int, indices: Tensor, mine: slice) -> None:
        """Reads what a step will read from the disk."""
        self.read_pixels(indices)

    def read_pixels(self, indices: Tensor) -> None:
        """Reads pixels at indices `(n,)` from the disk, one image after another, so that no other threads join in."""
        if self.pixels.device.type == "cpu":
            for row in torch.split(indices, 1):
                self.pixels.index_select(0, row)

    def _pixels(self, indices: Tensor) -> Tensor:
        return gather(self.pixels, indices, self.device).to(self.dtype).div_(255)


@dataclass(kw_only=True)
class CachedBatches(RealBatches):
    """Unaugmented images with stored targets `(N, D)`."""

    targets: Targets | Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        self.targets = _ready(self.targets, self.device)

    def __call__(self, step: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        """See `Batches.__call__`."""
        _, indices, pixels = self._take(step, rank, world)
        return self.pixel_space.normalise(pixels), _rows(self.targets, indices, self.device).to(self.dtype)

    def _read(self, step: int, indices: Tensor, mine: slice) -> None:
        self.read_at(indices)

    def read_at(self, indices: Tensor) -> None:
        """Reads what `at` will read from the disk."""
        self.read_pixels(indices)
        _read_features(self.targets, indices)

    def at(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Returns images and targets at indices `(n,)`, on the CPU, instead of those of a step."""
        images = self.pixel_space.normalise(self._pixels(indices))
        return images, _rows(self.targets, indices, self.device).to(self.dtype)


@dataclass(kw_only=True)
class LabelledBatches(CachedBatches):
    """Freshly cropped and flipped images with stored targets, which are of classes: no view changes these."""

    def __call__(self, step: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        """See `Batches.__call__`."""
        mine, indices, pixels = self._take(step, rank, world)
        views = draw_views(self.batch_size, generator(self.seed, "augment", step))[mine]
        pixels = crop_flip(pixels, copy_async(views, self.device))
        return self.pixel_space.normalise(pixels), _rows(self.targets, indices, self.device).to(self.dtype)


@dataclass(kw_only=True)
class FixedCropBatches(RealBatches):
    """One of the `K` views of each image that `fixed_views` gives, drawn for every batch; targets `(N, D)` of each."""

    targets: Sequence[Targets | Tensor]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.targets = [_ready(targets, self.device, len(self.targets)) for targets in self.targets]
        rows, views = range(len(self.pixels)), range(len(self.targets))
        # Offsets and flips are at most 8: in bytes they take an eighth of the memory.
        self.crops = torch.stack([fixed_views(rows, view, self.seed).to(torch.uint8) for view in views])  # (K, N, 3)

    def __call__(self, step: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        """See `Batches.__call__`."""
        mine, indices, pixels = self._take(step, rank, world)
        views = self._views(step)[mine]
        # Views are grouped to read each bank once; a stable sort's inverse puts the targets back in their order.
        order = views.argsort(stable=True)
        parts = [_rows(part, indices[views == view], self.device) for view, part in enumerate(self.targets)]
        targets = gather(torch.cat(parts), order.argsort(), self.device)
        pixels = crop_flip(pixels, copy_async(self.crops[views, indices].long(), self.device))
        return self.pixel_space.normalise(pixels), targets.to(self.dtype)

    def _views(self, step: int) -> Tensor:
        return torch.randint(len(self.crops), (self.batch_size,), generator=generator(self.seed, "view", step))

    def _read(self, step: int, indices: Tensor, mine: slice) -> None:
        super()._read(step, indices, mine)
        views = self._views(step)[mine]
        for view, part in enumerate(self.targets):
            _read_features(part, indices[views == view])


@dataclass(kw_only=True)
class AugmentedBatches(RealBatches):
    """Freshly cropped and flipped images, and the teacher, on `device`, run on just these, as in KRR-ST's code."""

    teacher: Teacher
    transform: TargetTransform

    def __call__(self, step: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        """See `Batches.__call__`."""
        mine, _, pixels = self._take(step, rank, world)
        views = draw_views(self.batch_size, generator(self.seed, "augment", step))[mine]
        pixels = crop_flip(pixels, copy_async(views, self.device))
        targets = self.transform(self.teacher(pixels))
        return self.pixel_space.normalise(pixels), targets.to(self.device, self.dtype)


class Ahead:
    """Batches of a run of `steps`, of which the next one is prepared while the present step is computed."""

    def __init__(self, batches: Batches, steps: int) -> None:
        self._batches, self._steps = batches, steps
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._ready: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
        self.rows = getattr(batches, "rows", None)

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


def _rows(targets: Targets | Tensor, indices: Tensor, device: torch.device | str) -> Tensor:
    return gather(targets, indices, device) if isinstance(targets, Tensor) else copy_async(targets[indices], device)


def _read_features(targets: Targets | Tensor, indices: Tensor) -> None:
    if isinstance(targets, Targets):
        targets.features[indices]


def _ready(targets: Targets | Tensor, device: torch.device | str, copies: int = 1) -> Targets | Tensor:
    """Returns targets on a GPU as a whole where it has room for `copies` of them, and unchanged otherwise."""
    if isinstance(targets, Tensor):
        return keep_on_device(targets, device, copies)
    size = len(targets) * targets.width * targets.dtype.itemsize
    return targets[:].to(device) if may_stay(size * copies, device) else targets


def build_batches(
    source: ImageBank,
    cache: FeatureCache | StandInCache | LabelCache,
    targets: Targets,
    pixel_space: PixelSpace,
    *,
    batch_size: int,
    seed: int,
    augment: bool,
    views: int,
) -> Batches:
    """Returns the real data of the outer steps, on the device of the cache's accelerator, in the type of the targets.

    Args:
        source: The source images.
        cache: The teacher and its features, or the classes.
        targets: Targets of the unaugmented images, `(N, D)`; their transform serves for views too.
        pixel_space: Like the next two, of `RealBatches`.
        batch_size: `B`.
        seed: Seed of the run.
        augment: Crop and flip.
        views: `K` fixed crops and flips of each image; 0 for fresh ones in every batch, with the teacher run on them.
    """
    device, dtype = cache.accelerator.device, targets.dtype
    common: dict[str, Any] = {"pixels": source.pixels, "pixel_space": pixel_space, "batch_size": batch_size}
    common |= {"seed": seed, "device": device, "dtype": dtype, "on_disk": source.on_disk or targets.on_disk}
    if not augment:
        return CachedBatches(**common, targets=targets)
    if views:
        banks = [cache.features(source, view, seed) for view in range(views)]
        return FixedCropBatches(**common, targets=[Targets(bank, targets.transform, dtype) for bank in banks])
    if cache.teacher is None:
        return LabelledBatches(**common, targets=targets)
    return AugmentedBatches(**common, teacher=cache.teacher, transform=targets.transform.to(device, dtype))

"""What an outer step costs against each of its sizes: seconds and memory, one size varied at a time.

Each point is measured in a process of its own, so that its peak of memory is its own. The real images and their
targets are noise in mapped files, of which the memory of a process holds the rows of one batch at a time. The files
are freshly written, so they are in the system's cache; how quick a disk is has no part in the figures. What has room
on a GPU is kept there.
"""

import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ssdd_hub.distill.distiller import Distiller, DistillerSettings
from ssdd_hub.errors import require
from ssdd_hub.models.build import StudentSettings
from ssdd_hub.runs.folder import LaunchSettings, RunLog
from ssdd_hub.runs.launch import build_accelerator
from ssdd_hub.runs.machine import peak_memory
from ssdd_hub.seeds import generator
from ssdd_hub.studies.apart import ApartError, call_apart
from ssdd_hub.studies.benchmark import Benchmark, BenchmarkSettings

Record = dict[str, Any]
AXES = ("num_images", "batch_size", "widths", "image_size", "num_source")
# Rows that are drawn and written at a time.
ROWS = 256


@dataclass(frozen=True)
class CostCurvesSettings:
    """The values of each size, of which one is varied at a time; the base is that of the other settings.

    Attributes:
        num_images: Distilled images `M`; like any of these lists, it may be empty.
        batch_size: Real images `B` of a batch.
        widths: Channels of each block of the student, which decide its feature width `F`.
        image_size: Height and width of all images.
        num_source: Real images `N` that batches are drawn from.
        source_image_size: Height and width of all images where `num_source` is varied, so that the file of a million
            of them is small; None for those of the base.
        steps: Steps of each point that count.
        warm_up: Steps of each point before them; the first one plans and, where that is asked for, compiles.
        timeout: Seconds until a point is given up, the start of its process included.
    """

    num_images: list[int] = field(default_factory=lambda: [100, 300, 1000, 3000, 10_000])
    batch_size: list[int] = field(default_factory=lambda: [128, 256, 512, 1024, 2048])
    widths: list[list[int]] = field(
        default_factory=lambda: [[16, 32, 64], [32, 64, 128], [64, 128, 256], [128, 256, 512]]
    )
    image_size: list[int] = field(default_factory=lambda: [16, 32, 64, 128])
    num_source: list[int] = field(default_factory=lambda: [10_000, 100_000, 1_280_000])
    source_image_size: int | None = 8
    steps: int = 2
    warm_up: int = 1
    timeout: float = 1800.0

    def __post_init__(self) -> None:
        axes = {axis: getattr(self, axis) for axis in AXES}
        flat = {**axes, "widths": [width for widths in self.widths for width in widths]}
        counts = {name: getattr(self, name) for name in ("steps", "warm_up")}
        if self.source_image_size is not None:
            counts["source_image_size"] = self.source_image_size
        require(
            (any(axes.values()), f"curves must vary something: all of {', '.join(AXES)} are empty"),
            *(
                (min(values, default=1) >= 1, f"curves.{axis} must be at least 1, got {axes[axis]}")
                for axis, values in flat.items()
            ),
            (all(self.widths), f"curves.widths must each name the channels of a block, got {self.widths}"),
            *(
                (
                    all(value not in values[:place] for place, value in enumerate(values)),
                    f"curves.{axis} must differ from each other, got {values}",
                )
                for axis, values in axes.items()
            ),
            *((value >= 1, f"curves.{name} must be at least 1, got {value}") for name, value in counts.items()),
            (self.timeout > 0, f"curves.timeout must be above 0, got {self.timeout}"),
        )


@dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        axis: The size that is varied, one of `AXES`.
        place: Where its value stands in the list of the settings.
        value: Its value; the channels of all blocks where the widths are varied.
        benchmark: The shapes of the data.
        distiller: The outer problem.
        student: The student's network.
    """

    axis: str
    place: int
    value: int | list[int]
    benchmark: BenchmarkSettings
    distiller: DistillerSettings
    student: StudentSettings


def plan_points(
    settings: CostCurvesSettings, benchmark: BenchmarkSettings, distiller: DistillerSettings, student: StudentSettings
) -> list[Point]:
    """Returns the points of all axes.

    Args:
        settings: What is varied.
        benchmark: The base; only `image_size`, `num_targets` and `num_source` count.
        distiller: The base.
        student: The base.
    """
    points = []
    for axis in AXES:
        for place, value in enumerate(getattr(settings, axis)):
            data, outer, network = benchmark, distiller, student
            if axis == "widths":
                network = replace(student, model_args={**student.model_args, "widths": value})
            elif axis == "image_size":
                data = replace(benchmark, image_size=value)
            elif axis == "num_source":
                side = settings.source_image_size or benchmark.image_size
                data = replace(benchmark, num_source=value, image_size=side)
            else:
                outer = replace(distiller, **{axis: value})
            points.append(Point(axis, place, value, data, outer, network))
    return points


def measure_curves(
    points: Sequence[Point],
    settings: CostCurvesSettings,
    seed: int,
    launch: LaunchSettings,
    log: RunLog,
    progress: bool = True,
) -> list[Record]:
    """Measures all points that the log does not hold yet, one after the other, each in a process of its own.

    Args:
        points: Of `plan_points`.
        settings: The same as there.
        seed: Seed of noise and weights.
        launch: How the processes compute.
        log: Gets each point as soon as it is measured: its axis as `stage`, its place as `step`. A point whose line is
            removed is measured again.
        progress: Show a bar.

    Returns:
        For each point, in their order, `stage`, `step`, `value`, and what `measure_point` found or, in its place,
        `failed`: why it could not be measured.
    """
    # There is no such stage: only a line that was cut off goes.
    log.rewind("", 0)
    done = {(record["stage"], record["step"]): record for record in log.read()}
    missing = [point for point in points if (point.axis, point.place) not in done]
    bar = tqdm(missing, "points", unit="point", disable=not progress)
    for point in bar:
        bar.set_postfix_str(f"{point.axis} {point.value}")
        how = (settings.steps, settings.warm_up, seed, launch)
        try:
            found: Record = call_apart(measure_point, point, *how, timeout=settings.timeout)
        except ApartError as error:
            found = {"failed": str(error)}
        record = {"stage": point.axis, "step": point.place, "value": point.value, **found}
        log.write([record])
        done[point.axis, point.place] = record
    return [done[point.axis, point.place] for point in points]


def measure_point(point: Point, steps: int, warm_up: int, seed: int, launch: LaunchSettings) -> Record:
    """Measures one point in this process, which should have done nothing else.

    Args:
        point: The sizes.
        steps: Steps that count.
        warm_up: Steps before them.
        seed: Seed of noise and weights.
        launch: How the process computes.

    Returns:
        `seconds`, the median of `steps_seconds`; `parts`, the mean seconds by part, none on a GPU; `memory_gib`, the
        peak of this process, and `start_gib`, that of before: of a GPU's memory where there is one; `part_size` and
        `recompute`, how images passed the student; its `num_features`; `threads`.

    Raises:
        InputError: There is no such student for such images.
    """
    accelerator = build_accelerator(replace(launch, trackers=[]), Path())
    device, start = accelerator.device, _peak_memory(accelerator.device)
    distiller, maps = _build(point, seed, accelerator)
    taken = []
    for number in range(warm_up + steps):
        # Each step finds its rows in the cache of the system, and none in the process.
        for mapped in maps:
            forget_rows(mapped)
        if number == warm_up:
            distiller.watch.reset()
        started = time.perf_counter()
        distiller.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started)
    parts = distiller.state_dict()["parts"]
    return {
        "seconds": statistics.median(taken[warm_up:]),
        "steps_seconds": taken[warm_up:],
        "parts": {name: seconds / steps for name, seconds in distiller.watch.seconds.items() if device.type == "cpu"},
        "memory_gib": _peak_memory(device) / 2**30,
        "start_gib": start / 2**30,
        "part_size": parts["size"],
        "recompute": parts["recompute"],
        "num_features": cast(int, distiller.pool.students[0].module.num_features),
        "threads": torch.get_num_threads(),
    }


def _build(point: Point, seed: int, accelerator: Accelerator) -> tuple[Distiller, list[mmap.mmap]]:
    """Returns our implementation, which draws from mapped files, and their maps."""
    shape, noise = point.benchmark, generator(seed, "cost curves")
    # The benchmark's own source, which is in memory, is replaced.
    benchmark = Benchmark(replace(shape, num_source=1), point.distiller, point.student, seed, accelerator)
    image = (3, shape.image_size, shape.image_size)
    pixels, first = map_rows(
        lambda rows: torch.randint(256, (rows, *image), dtype=torch.uint8, generator=noise), shape.num_source
    )
    targets, second = map_rows(lambda rows: torch.randn(rows, shape.num_targets, generator=noise), shape.num_source)
    return benchmark.fast(point.distiller.compile, (pixels, targets)), [first, second]


def map_rows(draw: Callable[[int], Tensor], count: int) -> tuple[Tensor, mmap.mmap]:
    """Returns rows in a file without a name, and its map: rows that are not read take no memory of the process.

    Args:
        draw: Gives so many rows, `(n, ...)`; it is called for a few at a time.
        count: Rows in all.

    Raises:
        OSError: The disk is full; the file is in the folder for temporary files.
    """
    # Not written through the map, whose pages would count as memory of the process. Nor in large pieces, which the
    # system may keep in large pages; a row that is read would count as the whole page.
    with tempfile.TemporaryFile(buffering=0) as file:
        for start in range(0, count, ROWS):
            rows = draw(min(ROWS, count - start))
            content = rows.numpy().data.cast("B")
            for piece in range(0, len(content), mmap.PAGESIZE):
                file.write(content[piece : piece + mmap.PAGESIZE])
        # The disk shall have nothing left to do while steps are timed.
        os.fsync(file.fileno())
        mapped = mmap.mmap(file.fileno(), 0)
    return torch.frombuffer(mapped, dtype=rows.dtype).view(count, *rows.shape[1:]), mapped


def forget_rows(mapped: mmap.mmap) -> None:
    """Takes the rows that were read out of the process's memory, where the system can; they stay in its cache."""
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _peak_memory(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()

"""Time of an outer step, by part, compared with the plain implementation and with the machine's matrix products."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ssdd_hub.data.augment import crop_flip, draw_views
from ssdd_hub.distill.batches import CachedBatches
from ssdd_hub.distill.distiller import Distiller, DistillerSettings
from ssdd_hub.distill.engine.timing import PARTS, Stopwatch
from ssdd_hub.distill.pool import PoolSettings, StudentPool
from ssdd_hub.errors import require
from ssdd_hub.files import atomic_path
from ssdd_hub.models.build import StudentSettings, build_student
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.runs.launch import keep_freed_memory
from ssdd_hub.runs.machine import peak_memory
from ssdd_hub.seeds import draw_batch, generator, seeded
from studies.plain import PlainDistiller

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = dict[str, Any]
# Square matrices that are large enough for the full rate, and the seconds for which it is measured each time.
PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192}
PRODUCT_SECONDS = 0.3
# Steps that are timed at once: a GPU does one while the host prepares the next.
STEPS_AT_ONCE = {"cpu": 1, "cuda": 20}
NAMES = {"fast": "ssdd_hub", "plain": "plain"}
COLOURS = ("#9aa5b1", "#c8553d", "#1f6f8b", "#5aa9c4", "#588b3a", "#8d5a97", "#444444", "#b8860b")


@dataclass(frozen=True)
class BenchmarkSettings:
    """What is timed; the shapes are the distiller's and the student's.

    Attributes:
        image_size: Height and width of the images, which are noise.
        num_targets: Target width `D`.
        num_source: Real images that batches are drawn from.
        teacher: timm name of the network that the plain implementation runs on every batch.
        plain: Time the plain implementation too.
        warm_up: Steps before the first one that counts; the first compiles.
        rounds: How often each implementation is timed, in alternation: one step on the CPU, 20 in a row on a GPU.
    """

    image_size: int = 32
    num_targets: int = 512
    num_source: int = 4096
    teacher: str = "ssdd_resnet18"
    plain: bool = True
    warm_up: int = 3
    rounds: int = 10

    def __post_init__(self) -> None:
        counts = ("image_size", "num_targets", "num_source", "warm_up", "rounds")
        require(
            *(
                (getattr(self, name) >= 1, f"benchmark.{name} must be at least 1, got {getattr(self, name)}")
                for name in counts
            )
        )


class Benchmark:
    """Both implementations on the same noise, ready to be timed.

    Args:
        settings: What is timed.
        distiller: The outer problem.
        student: The student's network.
        seed: Seed of noise and weights.
        accelerator: Device and mixed precision.
    """

    def __init__(
        self,
        settings: BenchmarkSettings,
        distiller: DistillerSettings,
        student: StudentSettings,
        seed: int,
        accelerator: Accelerator,
    ) -> None:
        self.settings, self.outer, self.student = settings, distiller, student
        self.seed, self.accelerator, self.device = seed, accelerator, accelerator.device
        self.at_once = STEPS_AT_ONCE["cuda" if self.device.type == "cuda" else "cpu"]
        side, source = settings.image_size, generator(seed, "benchmark")
        self.pixels = torch.randint(256, (settings.num_source, 3, side, side), dtype=torch.uint8, generator=source)
        self.images = torch.randn(distiller.num_images, 3, side, side, generator=source)
        self.targets = torch.randn(distiller.num_images, settings.num_targets, generator=source)
        self.real_targets = torch.randn(settings.num_source, settings.num_targets, generator=source)

    def fast(self, compiled: bool, source: tuple[Tensor, Tensor] | None = None, **changes: Any) -> Distiller:
        """Returns our implementation, with targets as they come from the cache.

        Args:
            compiled: Whether it compiles.
            source: Pixels and targets to draw from, in place of the benchmark's own.
            **changes: Settings of the distiller that are to differ.
        """
        settings = DistillerSettings(**{**vars(self.outer), "compile": compiled, **changes})
        pool = StudentPool(
            self._student,
            PoolSettings(size=2, warm_up=False),
            self.seed,
            device=self.device,
        )
        pixels, targets = source or (self.pixels, self.real_targets)
        batches = CachedBatches(
            pixels=pixels,
            pixel_space=PixelSpace((0.5,) * 3, (0.25,) * 3),
            batch_size=settings.batch_size,
            seed=self.seed,
            device=self.device,
            targets=targets,
        )
        return Distiller(self.images, self.targets, pool, batches, settings, self.accelerator)

    def plain(self, watch: Stopwatch) -> Callable[[int], Any]:
        """Returns the plain implementation's step, of which the teacher runs on every batch."""
        with seeded(self.seed, "benchmark teacher"):
            teacher = build_student(self.settings.teacher, **self._shape()).eval().to(self.device)

        def batch(step: int) -> tuple[Tensor, Tensor]:
            images = self._augmented(step)
            return images, images

        distiller = PlainDistiller(
            self.images.to(self.device),
            self.targets.to(self.device),
            self._student,
            batch,
            teacher,
            self.outer,
            PoolSettings(size=2, warm_up=False),
            self.seed,
            watch.part,
        )
        return lambda number: distiller.step()

    def _augmented(self, step: int) -> Tensor:
        """Returns a batch as the released code makes it: freshly cropped and flipped."""
        size = self.outer.batch_size
        indices = draw_batch(len(self.pixels), size, self.seed, "real batch", step)
        pixels = self.pixels[indices].to(self.device).float() / 255
        return (crop_flip(pixels, draw_views(size, generator(self.seed, "augment", step))) - 0.5) / 0.25

    def _shape(self) -> dict[str, int]:
        settings = self.settings
        return {"num_targets": settings.num_targets, "in_chans": 3, "image_size": settings.image_size}

    def _student(self) -> nn.Module:
        return build_student(self.student.name, **self._shape(), **self.student.model_args)

    def count_flops(self) -> dict[str, int]:
        """Returns the floating-point operations of one outer step by kind, those of solving the system left out.

        They are those of direct convolutions in full precision, where no product is computed in two parts.
        """
        distiller = self.fast(compiled=False, winograd=False)
        mixed, self.accelerator.native_amp = self.accelerator.native_amp, False
        try:
            distiller.step()
            with FlopCounterMode(display=False) as counter:
                distiller.step()
        finally:
            self.accelerator.native_amp = mixed
        return {str(kind): count for kind, count in counter.get_flop_counts()["Global"].items()}

    def run(self, progress: Callable[[str], None] = lambda line: None) -> Record:
        """Times both implementations in alternation, and the matrix products between them.

        Args:
            progress: Told what is being done.

        Returns:
            `fast` and, when asked for, `plain`: `seconds` a step of each round, their `median` and the mean seconds by
            part, `parts`, on a GPU of as many more steps that wait for each part; `ratios` of plain to fast, the
            medians over pairs, `whole` and `without_teacher`; `flops` of a step by kind; `peak`, FLOP/s of matrix
            products, `achieved` by our steps and the median `share` of the peak; `memory_gib` that our steps needed at
            most.
        """
        rounds, fast = self.settings.rounds, self.fast(self.outer.compile)
        progress("warming up, and compiling where that is asked for")
        steps: dict[str, Callable[[int], Any]] = {"fast": lambda number: fast.step()}
        watches = {"fast": fast.watch}
        for number in range(self.settings.warm_up):
            steps["fast"](number)
        memory = self._memory()
        if self.settings.plain:
            watches["plain"] = Stopwatch(self.device)
            steps["plain"] = self.plain(watches["plain"])
            self._as_by_default(steps["plain"], 0)
        for watch in watches.values():
            watch.reset()
        seconds, peaks = {name: list[float]() for name in steps}, []
        for number in range(rounds):
            progress(f"round {number + 1} of {rounds}")
            peaks.append(self.measure_peak())
            seconds["fast"].append(self._time(steps["fast"], number))
            if "plain" in steps:
                seconds["plain"].append(self._as_by_default(steps["plain"], number))
        count = rounds * self.at_once
        if self.device.type == "cuda":
            watches["fast"] = self._watch_parts(fast, count)
        flops = self.count_flops()
        return {
            **{name: _summary(seconds[name], watches[name], count) for name in steps},
            **({"ratios": _ratios(seconds, watches["plain"].seconds["teacher"] / count)} if "plain" in steps else {}),
            "flops": flops,
            "peak": statistics.median(peaks),
            "achieved": sum(flops.values()) / statistics.median(seconds["fast"]),
            "share": statistics.median(
                sum(flops.values()) / taken / peak for taken, peak in zip(seconds["fast"], peaks, strict=True)
            ),
            "memory_gib": memory,
        }

    def _watch_parts(self, distiller: Distiller, steps: int) -> Stopwatch:
        """Times the parts of steps on a GPU, where they are recorded as a whole otherwise."""
        distiller.record_nothing()
        distiller.step()
        distiller.engine.watch = watch = Stopwatch(self.device)
        for _ in range(steps):
            distiller.step()
        return watch

    def _as_by_default(self, step: Callable[[int], Any], number: int) -> float:
        """Times a step with memory as the C library handles it by itself, as it is where nobody asked for more."""
        keep_freed_memory(False)
        try:
            return self._time(step, number)
        finally:
            keep_freed_memory()

    def _time(self, step: Callable[[int], Any], number: int) -> float:
        started = time.perf_counter()
        for _ in range(self.at_once):
            step(number)
        self._wait()
        return (time.perf_counter() - started) / self.at_once

    def measure_peak(self) -> float:
        """Returns the FLOP/s of square matrix products, in the type of the networks: the median of many."""
        dtype = torch.bfloat16 if self.accelerator.mixed_precision == "bf16" else torch.float32
        size = PRODUCT_SIZE["cuda" if self.device.type == "cuda" else "cpu"]
        left, right = (torch.randn(size, size, device=self.device, dtype=dtype) for _ in range(2))
        taken, end = list[float](), time.perf_counter() + PRODUCT_SECONDS
        while not taken or time.perf_counter() < end:
            taken.append(self._time(lambda _: torch.matmul(left, right), 0))
        return 2 * size**3 / statistics.median(taken)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _memory(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        return peak_memory() / 2**30


def _summary(seconds: list[float], watch: Stopwatch, rounds: int) -> Record:
    return {
        "seconds": seconds,
        "median": statistics.median(seconds),
        "parts": {part: total / rounds for part, total in watch.seconds.items()},
    }


def _ratios(seconds: dict[str, list[float]], teacher: float) -> dict[str, float]:
    """Returns the medians of plain over fast, pair by pair."""
    pairs = list(zip(seconds["fast"], seconds["plain"], strict=True))
    return {
        "whole": statistics.median(plain / fast for fast, plain in pairs),
        "without_teacher": statistics.median((plain - teacher) / fast for fast, plain in pairs),
    }


def benchmark_table(record: Record, steps: int) -> str:
    """Returns the seconds of each part and what follows from them, as plain text.

    Args:
        record: Of `Benchmark.run`.
        steps: Outer steps of the whole run that is projected.
    """
    shown = [name for name in NAMES if name in record]
    lines = ["".join(["seconds of an outer step".ljust(26), *(NAMES[name].rjust(10) for name in shown)])]
    for part in PARTS:
        lines.append("".join([f"  {part}".ljust(26), *(f"{record[name]['parts'][part]:10.4f}" for name in shown)]))
    lines.append("".join(["  whole, median".ljust(26), *(f"{record[name]['median']:10.4f}" for name in shown)]))
    if "ratios" in record:
        ratios = record["ratios"]
        lines.append(
            f"{ratios['whole']:.2f} times as fast as plain; {ratios['without_teacher']:.2f} times with the teacher's "
            "time left out of both"
        )
    lines.append(
        f"{sum(record['flops'].values()) / 1e9:.1f} GFLOP a step, {record['achieved'] / 1e9:.1f} GFLOP/s: "
        f"{record['share']:.1%} of the {record['peak'] / 1e9:.1f} GFLOP/s of matrix products"
    )
    lines.append(f"at most {record['memory_gib']:.2f} GiB of memory")
    lines += [f"{steps} steps: {duration(record[name]['median'] * steps)} ({NAMES[name]})" for name in shown]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Returns a time as people read it, such as `2 d 3 h`, `4 h 5 min` or `12 s`."""
    whole = round(seconds)
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    for (large, size), (small, part) in zip(units, units[1:], strict=False):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {large}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def render_benchmark(path: Path, record: Record) -> None:
    """Draws the seconds of each part, stacked, and the rate beside that of matrix products, as a PNG.

    Args:
        path: The picture to write.
        record: Of `Benchmark.run`.
    """
    # Not pyplot, which would keep every figure and pick a backend for the caller's process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[3, 1])
    _draw_parts(left, record)
    bars = right.bar(
        ["matrix\nproducts", "ssdd_hub"], [record["peak"] / 1e9, record["achieved"] / 1e9], color="#1f6f8b"
    )
    bars[0].set_color("#9aa5b1")
    right.bar_label(bars, fmt="%.0f")
    right.set_ylabel("GFLOP/s")
    right.margins(y=0.15)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _draw_parts(axes: "Axes", record: Record) -> None:
    shown = [name for name in ("plain", "fast") if name in record]
    starts = [0.0] * len(shown)
    for part, colour in zip(PARTS, COLOURS, strict=True):
        seconds = [record[name]["parts"][part] for name in shown]
        axes.barh([NAMES[name] for name in shown], seconds, left=starts, color=colour, label=part)
        starts = [start + value for start, value in zip(starts, seconds, strict=True)]
    axes.set_xlabel("seconds of an outer step")
    axes.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.25), frameon=False)

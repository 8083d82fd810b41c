"""Time of an outer step, by part, compared with the plain implementation and with the machine's matrix products."""

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ssdd_hub import PixelSpace
from ssdd_hub.bounds import Count, Settings
from ssdd_hub.distill import Distiller, DistillerSettings, PoolSettings, StudentPool
from ssdd_hub.distill.batches import CachedBatches
from ssdd_hub.distill.engine.timing import PARTS, Stopwatch
from ssdd_hub.models import StudentSettings, build_student
from ssdd_hub.results.charts import new_figure, save_figures
from ssdd_hub.runs.machine import peak_memory, require_memory
from ssdd_hub.seeds import generator, seeded
from studies.plain import PlainDistiller, giving_memory_back, real_batches

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
SPACE, POOL = PixelSpace((0.5,) * 3, (0.25,) * 3), PoolSettings(size=2, warm_up=False)


@dataclass(frozen=True)
class BenchmarkSettings(Settings, section="benchmark"):
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

    image_size: Count = 32
    num_targets: Count = 512
    num_source: Count = 4096
    teacher: str = "ssdd_resnet18"
    plain: bool = True
    warm_up: Count = 3
    rounds: Count = 10


class Benchmark:
    """Both implementations on the same noise, ready to be timed."""

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
        self.kind = "cuda" if self.device.type == "cuda" else "cpu"
        side, source = settings.image_size, generator(seed, "benchmark")
        targets, images = 4 * settings.num_targets, distiller.num_images
        require_memory("--benchmark.num-source", settings.num_source, 3 * side * side + targets, "cpu")
        require_memory("--distiller.num-images", images, 12 * side * side + targets, "cpu")
        require_memory("--distiller.batch-size", distiller.batch_size, 12 * side * side, self.device)
        self.pixels = torch.randint(256, (settings.num_source, 3, side, side), dtype=torch.uint8, generator=source)
        self.images = torch.randn(distiller.num_images, 3, side, side, generator=source)
        self.targets = torch.randn(distiller.num_images, settings.num_targets, generator=source)
        self.real_targets = torch.randn(settings.num_source, settings.num_targets, generator=source)

    def fast(self, **changes: Any) -> Distiller:
        """Returns our implementation, with targets as from a cache and some settings of the distiller changed."""
        settings = replace(self.outer, **changes)
        pool = StudentPool(self._student, POOL, self.seed, device=self.device)
        batches = CachedBatches(
            pixels=self.pixels,
            pixel_space=SPACE,
            batch_size=settings.batch_size,
            seed=self.seed,
            device=self.device,
            targets=self.real_targets,
        )
        return Distiller(self.images, self.targets, pool, batches, settings, self.accelerator)

    def plain(self, watch: Stopwatch) -> PlainDistiller:
        """Returns the plain implementation, which crops and flips every batch and runs the teacher on it."""
        with seeded(self.seed, "benchmark teacher"):
            teacher = build_student(self.settings.teacher, **self._shape()).eval().to(self.device)
        first = self.images.to(self.device), self.targets.to(self.device)
        batches = real_batches(self.pixels, SPACE, replace(self.outer, augment=True), self.seed, self.device)
        return PlainDistiller(*first, self._student, batches, teacher, self.outer, POOL, self.seed, watch.part)

    def _shape(self) -> dict[str, Any]:
        settings = self.settings
        return {"num_targets": settings.num_targets, "in_chans": 3, "image_size": settings.image_size}

    def _student(self) -> nn.Module:
        return build_student(self.student.name, **self._shape(), **self.student.building())

    def count_flops(self) -> dict[str, int]:
        """Returns the floating-point operations of one outer step by kind, those of solving the system left out.

        They are those of direct convolutions in full precision, where no product is computed in two parts.
        """
        distiller = self.fast(compile=False, winograd=False)
        mixed, self.accelerator.native_amp = self.accelerator.native_amp, False
        try:
            distiller.step()
            with FlopCounterMode(display=False) as counter:
                distiller.step()
        finally:
            self.accelerator.native_amp = mixed
        return {str(kind): count for kind, count in counter.get_flop_counts()["Global"].items()}

    def run(self, progress: Callable[[str], None] = lambda line: None) -> Record:
        """Times both implementations in alternation, and the matrix products between them; reports its progress.

        Returns:
            `fast` and, where it is timed, `plain`: `seconds` a step of each round, their `median` and the mean seconds
            by part, `parts`, on a GPU of as many more steps that wait for each part; `ratios` of plain to fast, the
            medians over pairs, `whole` and `without_teacher`; `flops` of a step by kind; `peak`, FLOP/s of matrix
            products, `achieved` by our steps and the median `share` of the peak; `memory_gib` that our steps needed at
            most.
        """
        rounds, fast, count = self.settings.rounds, self.fast(), self.settings.rounds * STEPS_AT_ONCE[self.kind]
        progress("warming up, and compiling where that is asked for")
        for _ in range(self.settings.warm_up):
            fast.step()
        memory = self._memory()
        distillers: dict[str, Any] = {"fast": fast}
        watches = {"fast": fast.watch}
        if self.settings.plain:
            watches["plain"] = Stopwatch(self.device)
            distillers["plain"] = self.plain(watches["plain"])
            self._time("plain", distillers["plain"])
        for watch in watches.values():
            watch.reset()
        seconds, peaks = {name: list[float]() for name in distillers}, []
        for number in range(rounds):
            progress(f"round {number + 1} of {rounds}")
            peaks.append(self.measure_peak())
            for name, distiller in distillers.items():
                seconds[name].append(self._time(name, distiller))
        if self.kind == "cuda":
            watches["fast"] = self._watch_parts(fast, count)
        by_kind = self.count_flops()
        flops, record = sum(by_kind.values()), Record()
        for name, taken in seconds.items():
            parts = {part: total / count for part, total in watches[name].seconds.items()}
            record[name] = {"seconds": taken, "median": statistics.median(taken), "parts": parts}
        if "plain" in record:
            teacher, pairs = record["plain"]["parts"]["teacher"], list(zip(*seconds.values(), strict=True))
            record["ratios"] = {
                "whole": statistics.median(plain / fast for fast, plain in pairs),
                "without_teacher": statistics.median((plain - teacher) / fast for fast, plain in pairs),
            }
        shares = [flops / taken / peak for taken, peak in zip(seconds["fast"], peaks, strict=True)]
        return {
            **record,
            "flops": by_kind,
            "peak": statistics.median(peaks),
            "achieved": flops / record["fast"]["median"],
            "share": statistics.median(shares),
            "memory_gib": memory,
        }

    def _watch_parts(self, distiller: Distiller, steps: int) -> Stopwatch:
        """Times the parts of steps on a GPU, where they are recorded as a whole otherwise."""
        distiller.disable_cuda_graphs()
        distiller.step()
        distiller.engine.watch = watch = Stopwatch(self.device)
        for _ in range(steps):
            distiller.step()
        return watch

    def _time(self, name: str, distiller: Distiller | PlainDistiller) -> float:
        """Returns the seconds of a step; the plain one's memory is as the C library handles it by itself."""
        with giving_memory_back(self.device) if name == "plain" else nullcontext():
            return self._seconds(distiller.step)

    def _seconds(self, work: Callable[[], Any]) -> float:
        started = time.perf_counter()
        for _ in range(STEPS_AT_ONCE[self.kind]):
            work()
        if self.kind == "cuda":
            torch.cuda.synchronize(self.device)
        return (time.perf_counter() - started) / STEPS_AT_ONCE[self.kind]

    def measure_peak(self) -> float:
        """Returns the FLOP/s of square matrix products, in the type of the networks: the median of many."""
        dtype = torch.bfloat16 if self.accelerator.mixed_precision == "bf16" else torch.float32
        size = PRODUCT_SIZE[self.kind]
        left, right = (torch.randn(size, size, device=self.device, dtype=dtype) for _ in range(2))
        taken, end = list[float](), time.perf_counter() + PRODUCT_SECONDS
        while not taken or time.perf_counter() < end:
            taken.append(self._seconds(partial(torch.matmul, left, right)))
        return 2 * size**3 / statistics.median(taken)

    def _memory(self) -> float:
        used = torch.cuda.max_memory_allocated(self.device) if self.kind == "cuda" else peak_memory()
        return used / 2**30


def benchmark_table(record: Record, steps: int) -> str:
    """Returns the seconds of each part and what follows from them, as plain text, for a run of so many steps."""
    shown = [name for name in NAMES if name in record]
    rows = [("seconds of an outer step", [NAMES[name].rjust(10) for name in shown])]
    rows += [(f"  {part}", [f"{record[name]['parts'][part]:10.4f}" for name in shown]) for part in PARTS]
    rows.append(("  whole, median", [f"{record[name]['median']:10.4f}" for name in shown]))
    lines = ["".join([title.ljust(26), *cells]) for title, cells in rows]
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
    """Returns a time such as `2 d 3 h`, `4 h 5 min` or `12 s`."""
    whole = round(seconds)
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    for (large, size), (small, part) in zip(units, units[1:], strict=False):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {large}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def render_benchmark(path: Path, record: Record) -> None:
    """Draws the seconds of each part, stacked, and the rate beside that of matrix products, as a PNG."""
    figure = new_figure(9.5, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=[3, 1])
    _draw_parts(left, record)
    rates = [record["peak"] / 1e9, record["achieved"] / 1e9]
    bars = right.bar(["matrix\nproducts", "ssdd_hub"], rates, color="#1f6f8b")
    bars[0].set_color("#9aa5b1")
    right.bar_label(bars, fmt="%.0f")
    right.set_ylabel("GFLOP/s")
    right.margins(y=0.15)
    save_figures(path.parent, {path.stem: figure})


def _draw_parts(axes: "Axes", record: Record) -> None:
    shown = [name for name in ("plain", "fast") if name in record]
    starts = [0.0] * len(shown)
    for part, colour in zip(PARTS, COLOURS, strict=True):
        seconds = [record[name]["parts"][part] for name in shown]
        axes.barh([NAMES[name] for name in shown], seconds, left=starts, color=colour, label=part)
        starts = [start + value for start, value in zip(starts, seconds, strict=True)]
    axes.set_xlabel("seconds of an outer step")
    axes.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.25), frameon=False)

"""Time to quality: the seconds after which a set is worth a given amount to a student that is pre-trained on it.

A contender trains, and images and targets are copied on the way; only afterwards students are pre-trained on the
copies, and their error to the teacher is measured on held-out images. Copying and measuring do not count as time.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ssdd_hub.errors import InputError, require
from ssdd_hub.evaluation.evaluation import describe_values
from ssdd_hub.evaluation.protocols.base import Pretrained
from ssdd_hub.evaluation.protocols.teacher_error import TeacherError
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.models.pretraining import UseSettings, fit_student
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.seeds import derive_seed, seeded
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.pretrain import SetPairs
from ssdd_hub.studies.quality_curve import Curve, Point, compare_curves

Record = dict[str, Any]


@dataclass(frozen=True)
class TimeToQualitySettings:
    """What quality is asked for, and how the way there is measured.

    Attributes:
        goal: Quality is reached where the held-out error to the teacher is by this share below that of random images.
        snapshots: Points of the curve, besides the one before the first step: evenly spaced on a logarithmic scale of
            steps, from `first` to the last.
        first: The step of the first of them.
        seeds: Students per point.
        max_heldout: Held-out images at most.
        budget: Minutes that each contender may train at most.
    """

    goal: float = 0.31
    snapshots: int = 12
    first: int = 10
    seeds: int = 3
    max_heldout: int = 2000
    budget: float = 60.0

    def __post_init__(self) -> None:
        counts = ("snapshots", "first", "seeds", "max_heldout")
        require(
            (0 < self.goal < 1, f"quality.goal must lie between 0 and 1, got {self.goal}"),
            *(
                (getattr(self, name) >= 1, f"quality.{name} must be at least 1, got {getattr(self, name)}")
                for name in counts
            ),
            (self.budget > 0, f"quality.budget must be above 0, got {self.budget}"),
        )

    def steps(self, last: int) -> list[int]:
        """Returns the steps after which a contender of `last` steps is copied, in order and each once."""
        first, most = min(self.first, last), max(self.snapshots - 1, 1)
        spaced = [round(first * (last / first) ** (number / most)) for number in range(self.snapshots)] if last else []
        return sorted({*spaced, last})


class Trainable(Protocol):
    """What can be a contender: `Distiller`, `PlainDistiller`."""

    @property
    def images(self) -> Tensor:
        """The images as they are now, `(M, C, H, W)`."""

    @property
    def targets(self) -> Tensor:
        """The targets as they are now, `(M, D)`."""

    def warm_up(self) -> Iterator[Tensor]:
        """Does one step of what comes before the first outer step with each item."""

    def step(self) -> Any:
        """Does one outer step."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A set as it was on the way.

    Attributes:
        step: Outer steps done.
        seconds: Since the start of the contender, its building and warm-up included.
        images: `(M, C, H, W)`, on the CPU.
        targets: `(M, D)`, on the CPU.
    """

    step: int
    seconds: float
    images: Tensor
    targets: Tensor


class _Clock:
    """Seconds since it was made, but for those in `paused`; before these, a GPU's work is waited for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._started = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._started

    @contextmanager
    def paused(self) -> Iterator[float]:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds = self.seconds()
        yield seconds
        self._started = time.perf_counter() - seconds


def train(
    name: str,
    make: Callable[[], Trainable],
    steps: int,
    settings: TimeToQualitySettings,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> list[Snapshot]:
    """Trains a contender to its last step, or until the budget is over.

    Args:
        name: The contender's.
        make: Builds it; the time that this takes counts.
        steps: Its outer steps.
        settings: Which steps are copied, and the budget.
        device: What works.
        progress: Show progress bars.

    Returns:
        Copies after the warm-up (step 0), after the steps that the settings name, and after the last step done.

    Raises:
        InputError: Images or targets are not finite.
    """
    due, most, taken = set(settings.steps(steps)), settings.budget * 60, list[Snapshot]()
    clock = _Clock(torch.device(device))

    def take(step: int) -> None:
        with clock.paused() as seconds:
            images, targets = (
                tensor.detach().cpu().float().clone() for tensor in (contender.images, contender.targets)
            )
            if not (images.isfinite().all() and targets.isfinite().all()):
                raise InputError(f"{name} diverges before step {step}: lower its distiller.lr_images or lr_targets")
            taken.append(Snapshot(step, seconds, images, targets))

    contender = make()
    for _ in tqdm(contender.warm_up(), f"{name}: pool", unit="step", disable=not progress):
        if clock.seconds() >= most:
            break
    take(0)
    for step in tqdm(range(1, steps + 1), name, unit="step", disable=not progress):
        if clock.seconds() >= most:
            break
        contender.step()
        if step in due or clock.seconds() >= most:
            take(step)
    return taken


@dataclass(frozen=True, eq=False)
class Meter:
    """Measures what snapshots are worth. Student `k` has the same first weights on each of them.

    Attributes:
        build: Returns an untrained student on the CPU; called under a seeded global generator.
        real: Held-out images, with the teacher's targets.
        space: The space of the snapshots' images.
        use: How students are pre-trained.
        seeds: Students per snapshot.
        seed: Seed of the run.
    """

    build: Callable[[], nn.Module]
    real: RealData
    space: PixelSpace
    use: UseSettings
    seeds: int
    seed: int

    def points(self, snapshots: Sequence[Snapshot]) -> Iterator[Point]:
        """Yields what each snapshot is worth, in order.

        On the CPU students are trained side by side, one core each: their steps are too short to be shared by several.

        Raises:
            InputError: A student diverges.
        """
        cores = torch.get_num_threads()
        workers = cores if self.real.device.type == "cpu" else 1
        pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
        try:
            jobs = [(snapshot, k) for snapshot in snapshots for k in range(self.seeds)]
            errors = pool.map(lambda job: self._error(*job), jobs)
            for snapshot in snapshots:
                values = [next(errors) for _ in range(self.seeds)]
                yield Point(snapshot.step, snapshot.seconds, **describe_values(values))
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(cores)

    def _error(self, snapshot: Snapshot, k: int) -> float:
        device = self.real.device
        # The students of `Evaluation`, so that its scores can be compared with these.
        with seeded(self.seed, "evaluated student", k):
            student = self.build()
        student = student.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        pairs = SetPairs(DistilledSet(snapshot.images, snapshot.targets, self.space), device)
        seed = derive_seed(self.seed, "evaluated student", k)
        fit_student(student, pairs, self.use, seed)
        try:
            return TeacherError()(Pretrained(student, self.build, pairs, seed), self.real)[0].value
        except InputError as error:
            raise InputError(f"student {k} on the set of step {snapshot.step}: {error}") from error


class TimeToQuality:
    """Lets contenders train one after another, and compares the seconds that they take.

    Args:
        settings: See `TimeToQualitySettings`.
        measure: Gives what snapshots are worth, in order: `Meter.points`.
        device: What works.
        log: Is given each point as it is measured, with its `stage`, the contender's name.
        progress: Show progress bars.

    Attributes:
        curves: Those of the contenders so far.
    """

    def __init__(
        self,
        settings: TimeToQualitySettings,
        measure: Callable[[Sequence[Snapshot]], Iterator[Point]],
        device: torch.device | str = "cpu",
        log: Callable[[Record], None] = lambda record: None,
        progress: bool = True,
    ) -> None:
        self.settings, self.measure, self.device = settings, measure, device
        self.log, self.progress = log, progress
        self.curves: list[Curve] = []
        self._random: tuple[Snapshot, Point] | None = None

    def run(
        self,
        name: str,
        make: Callable[[], Trainable],
        steps: int,
        around: AbstractContextManager[object] | None = None,
    ) -> None:
        """Trains a contender and measures its snapshots.

        Args:
            name: The contender's.
            make: Builds it.
            steps: Its outer steps.
            around: The context in which it is built and trained.
        """
        with around or nullcontext():
            snapshots = train(name, make, steps, self.settings, self.device, self.progress)
        points = list[Point]()
        bar = tqdm(total=len(snapshots), desc=f"{name}: error", unit="point", disable=not self.progress)
        for point in self._points(snapshots):
            points.append(point)
            self.log({"stage": name, **asdict(point)})
            bar.update()
        bar.close()
        self.curves.append(Curve(name, steps, points))

    def result(self) -> Record:
        """Returns what `compare_curves` does of the contenders so far, at least one."""
        return compare_curves(self.curves, self.settings.goal)

    def _points(self, snapshots: Sequence[Snapshot]) -> Iterator[Point]:
        """Yields the points; that of step 0 is measured once, since all contenders start from the same images."""
        first = snapshots[0]
        if self._random is not None and torch.equal(first.images, self._random[0].images):
            yield replace(self._random[1], seconds=first.seconds)
            snapshots = snapshots[1:]
        for point in self.measure(snapshots):
            self._random = self._random or (first, point)
            yield point

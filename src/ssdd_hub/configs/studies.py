"""The settings of the recipes that measure how fast we are; only recipes import it."""

from dataclasses import dataclass, field
from typing import Any

from ssdd_hub.data.bank import DataSettings
from ssdd_hub.distill.distiller import DistillerSettings
from ssdd_hub.distill.pool import PoolSettings
from ssdd_hub.errors import SettingsError, require
from ssdd_hub.models.build import StudentSettings
from ssdd_hub.models.pretraining import UseSettings
from ssdd_hub.runs.folder import LaunchSettings
from ssdd_hub.studies.benchmark import BenchmarkSettings
from ssdd_hub.studies.cost_curves import CostCurvesSettings
from ssdd_hub.studies.quality_contenders import ContenderSettings, read_contenders
from ssdd_hub.studies.time_to_quality import TimeToQualitySettings
from ssdd_hub.targets.targets import TargetSettings
from ssdd_hub.teachers.teacher import TeacherSettings


@dataclass(frozen=True)
class BenchmarkConfig:
    """Everything that decides how an outer step is timed.

    Attributes:
        benchmark: What is timed, and how often.
        student: The student's network.
        distiller: The outer problem; its `steps` are those of the run that is projected.
        run: How the process computes.
        seed: Seed of everything random.
        output: The folder of the results.
    """

    benchmark: BenchmarkSettings = field(default_factory=BenchmarkSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    distiller: DistillerSettings = field(default_factory=DistillerSettings)
    run: LaunchSettings = field(default_factory=LaunchSettings)
    seed: int = 0
    output: str = "runs/benchmark"

    def __post_init__(self) -> None:
        require(
            (self.distiller.precision == "float32", "networks are timed in float32: leave out --distiller.precision")
        )


@dataclass(frozen=True)
class CostCurvesConfig:
    """Everything that decides what an outer step costs against each of its sizes.

    Attributes:
        curves: The values of each size, of which one is varied at a time.
        benchmark: The base of the data: `image_size`, `num_targets` and `num_source`. The rest is not used here.
        student: The base of the student's network.
        distiller: The base of the outer problem.
        run: How the processes compute.
        seed: Seed of everything random.
        output: The folder of the results.
    """

    curves: CostCurvesSettings = field(default_factory=CostCurvesSettings)
    benchmark: BenchmarkSettings = field(default_factory=BenchmarkSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    distiller: DistillerSettings = field(default_factory=DistillerSettings)
    run: LaunchSettings = field(default_factory=LaunchSettings)
    seed: int = 0
    output: str = "runs/cost-curves"

    def __post_init__(self) -> None:
        unused = ("teacher", "plain", "warm_up", "rounds")
        given = [name for name in unused if getattr(self.benchmark, name) != getattr(BenchmarkSettings, name)]
        require(
            (self.distiller.precision == "float32", "networks are timed in float32: leave out --distiller.precision"),
            (
                not given,
                f"benchmark.{given[0] if given else ''} is not used here, where nothing but our own steps is timed, "
                "curves.steps of them after curves.warm_up: leave it out",
            ),
        )


@dataclass(frozen=True)
class TimeToQualityConfig:
    """Everything that decides in what time contenders reach a quality.

    Attributes:
        data: The source images.
        teacher: The network whose features are the targets, ready made.
        targets: How its features become targets.
        student: The network that distils and is pre-trained on the result.
        pool: The online students, where a contender has nothing of its own.
        distiller: The outer problem, where a contender has nothing of its own.
        use: How students are pre-trained on the result.
        quality: What quality is asked for, and how the way there is measured.
        contenders: By name what is a contender's own: `implementation` (`ours` or `plain`), and entries of `distiller`
            and `pool`. All others are compared with the first.
        run: How the process computes; `mixed_precision` is for our implementation, the plain one computes in float32.
        cache: Folder of cached teacher features; `features/` of the output folder when not given.
        seed: Seed of everything random.
        output: The folder of the results.
    """

    data: DataSettings = field(default_factory=DataSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    targets: TargetSettings = field(default_factory=TargetSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    distiller: DistillerSettings = field(default_factory=DistillerSettings)
    use: UseSettings = field(default_factory=UseSettings)
    quality: TimeToQualitySettings = field(default_factory=TimeToQualitySettings)
    contenders: dict[str, Any] = field(default_factory=lambda: {"ours": {}, "plain": {"implementation": "plain"}})
    run: LaunchSettings = field(default_factory=LaunchSettings)
    cache: str | None = None
    seed: int = 0
    output: str = "runs/time-to-quality"

    def __post_init__(self) -> None:
        problems = list[str]()
        try:
            read_contenders(self.contenders, self.distiller, self.pool)
        except SettingsError as error:
            problems = error.problems
        require(
            (self.teacher.ready, "time starts with a ready-made teacher: pass --teacher.pretrained true"),
            (not self.targets.views, "the time that fixed views take would not count: leave out --targets.views"),
            (self.use.augment != "views", "a set has no views on its way: choose another --use.augment"),
            (self.distiller.precision == "float32", "networks are timed in float32: leave out --distiller.precision"),
            *((False, problem) for problem in problems),
        )

    @property
    def entrants(self) -> dict[str, ContenderSettings]:
        """All settings of each contender, by name."""
        return read_contenders(self.contenders, self.distiller, self.pool)

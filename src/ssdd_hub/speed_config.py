"""The settings of the recipes that measure how fast we are; only recipes import it."""

from dataclasses import dataclass, field

from ssdd_hub.benchmark import BenchmarkSettings
from ssdd_hub.distiller import DistillerSettings
from ssdd_hub.errors import require
from ssdd_hub.run_folder import LaunchSettings
from ssdd_hub.students import StudentSettings


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

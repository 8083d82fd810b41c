"""Times an outer step: seconds by part, beside a plain implementation and the machine's matrix products.

accelerate launch recipes/benchmark.py
accelerate launch recipes/benchmark.py --distiller.num-images 1000 --distiller.batch-size 1024 --benchmark.rounds 3

Images are noise, whose values change no time. The plain implementation is KRR-ST as it is written down first: eager
float32 in PyTorch's default layout, the teacher run on every batch. Both take turns in one process, since machines
are quicker at one time than at another; so do the matrix products, whose rate is what arithmetic can reach at best.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

from ssdd_hub.distill import DistillerSettings, PoolSettings
from ssdd_hub.errors import require
from ssdd_hub.models import StudentSettings
from ssdd_hub.runs import UntrackedSettings, describe_machine, describe_versions, report_errors
from ssdd_hub.runs.begin import begin
from ssdd_hub.sets.provenance import describe_command
from ssdd_hub.settings import parse_config, to_dict
from studies.plain import plain_checks
from studies.step_time import Benchmark, BenchmarkSettings, benchmark_table, render_benchmark

DEFAULT = Path(__file__).parent / "configs" / "benchmark.yaml"


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
    run: UntrackedSettings = field(default_factory=UntrackedSettings)
    seed: int = 0
    output: str = "runs/benchmark"

    def __post_init__(self) -> None:
        require(
            (self.distiller.precision == "float32", "networks are timed in float32: leave out --distiller.precision"),
            *(plain_checks(self.distiller, PoolSettings()) if self.benchmark.plain else ()),
        )


@report_errors
def main() -> None:
    """Both implementations in alternation, table and picture."""
    started = time.perf_counter()
    config = parse_config(BenchmarkConfig, DEFAULT, description=__doc__)
    accelerator, run = begin(config, one_process=True)
    benchmark = Benchmark(config.benchmark, config.distiller, config.student, config.seed, accelerator)
    run.start()
    record = benchmark.run(progress=lambda line: print(line, flush=True))
    seconds = time.perf_counter() - started
    machine = describe_machine(accelerator.device, 1)
    facts = {"machine": machine, "versions": describe_versions(), "command": describe_command()}
    run.write_json("benchmark.json", {**record, "settings": to_dict(config), **facts, "seconds": seconds})
    render_benchmark(run.path / "benchmark.png", record)
    print(benchmark_table(record, config.distiller.steps))
    print(f"\nIn {run.path} after {seconds:.0f} s: benchmark.json, benchmark.png")
    accelerator.end_training()


if __name__ == "__main__":
    main()

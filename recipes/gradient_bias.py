"""Shows why the inner loss of KRR-ST is a regression: gradients through self-supervised inner losses are biased.

accelerate launch recipes/gradient_bias.py
accelerate launch recipes/gradient_bias.py --bias.losses '[simclr]' --bias.draws 4096 --output runs/simclr-bias

Theorem 1 of KRR-ST, measured on scikit-learn's embedded digits: the gradient of the outer loss with respect to ten
synthetic images, through an inner training whose augmentations are drawn, averaged over many draws, against that of
the expected inner loss, which is exact. Lengths are parts of that of the exact gradient. `projected` is the bias of
one half of the draws along the direction that the other half found, and `z` that over its standard error: without a
bias, |z| is above 5 once in 1.7 million runs. The float64 arithmetic is done on the CPU, by one process.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

from ssdd_hub.data import DataSettings, load_images
from ssdd_hub.errors import require
from ssdd_hub.runs import UntrackedSettings, describe_machine, describe_versions, report_errors
from ssdd_hub.runs.begin import begin
from ssdd_hub.sets.provenance import describe_command
from ssdd_hub.settings import parse_config
from studies.gradient_bias import (
    GradientBiasSettings,
    bias_table,
    build_problems,
    measure_bias,
    render_bias,
    sample_gradients,
)

DEFAULT = Path(__file__).parent / "configs" / "gradient_bias.yaml"


@dataclass(frozen=True)
class GradientBiasConfig:
    """Everything that decides a measurement of the bias of meta-gradients.

    Attributes:
        data: The images; the synthetic ones start as some of them.
        bias: What is measured.
        run: How the process computes.
        seed: Seed of everything random.
        output: The folder of the results.
    """

    data: DataSettings = field(default_factory=DataSettings)
    bias: GradientBiasSettings = field(default_factory=GradientBiasSettings)
    run: UntrackedSettings = field(default_factory=UntrackedSettings)
    seed: int = 0
    output: str = "runs/gradient-bias"

    def __post_init__(self) -> None:
        require(
            (
                self.run.mixed_precision == "no",
                "gradients are compared in float64: leave out --run.mixed-precision, also of the launcher",
            ),
            (not self.data.streaming, "the images are kept in memory: leave out --data.streaming"),
        )


@report_errors
def main() -> None:
    """Images, two-level problems, exact and sampled gradients, bias."""
    started = time.perf_counter()
    config = parse_config(GradientBiasConfig, DEFAULT, description=__doc__)
    accelerator, run = begin(config, one_process=True)
    source, _ = load_images(config.data, config.seed)
    pixels, problems = build_problems(source, config.bias, config.seed)
    run.start()
    records = []
    for name, problem in problems.items():
        sampled = sample_gradients(problem, pixels, config.bias.draws, config.seed, name)
        found = measure_bias(problem.exact_gradient(pixels), sampled)
        records.append({"loss": name, "learning_rate": problem.learning_rate, **found})
        run.log.rewind(name, 0)
        run.log.write({"stage": name, "step": number, "error": error} for number, error in found["curve"])

    machine, seconds = describe_machine(accelerator.device, 1), time.perf_counter() - started
    facts = {"machine": machine, "versions": describe_versions(), "command": describe_command()}
    run.write_json("results.json", {"records": records, **facts, "seconds": seconds})
    render_bias(run.path / "gradient_bias.png", records)
    print(bias_table(records))
    print(f"\nIn {run.path} after {seconds:.0f} s: results.json, gradient_bias.png, log.jsonl")
    accelerator.end_training()


if __name__ == "__main__":
    main()

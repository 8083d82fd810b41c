"""Measures what an outer step costs against M, B, F, the size of images and N: seconds, memory, and their exponents.

accelerate launch recipes/cost_curves.py
accelerate launch recipes/cost_curves.py --curves.num-images '[100, 1000]' --curves.timeout 600 --output runs/curves

One size is varied at a time, from a base that `distiller`, `student` and `benchmark` give; an empty list leaves a size
out. Each point has a process of its own, whose peak is its memory. A point that runs out of time or memory is recorded
with its reason, and the next one follows. The same command goes on where it stopped; remove a point's line from
log.jsonl to measure it again. Images are noise, whose values change no time.
"""

import time
from pathlib import Path

from ssdd_hub.configs.studies import CostCurvesConfig
from ssdd_hub.errors import InputError
from ssdd_hub.files import atomic_path
from ssdd_hub.runs.folder import RunFolder
from ssdd_hub.runs.launch import build_accelerator, report_errors
from ssdd_hub.runs.machine import describe_machine, describe_versions
from ssdd_hub.sets.provenance import describe_command
from ssdd_hub.settings import parse_config, to_dict, to_yaml
from ssdd_hub.studies.cost_curves import measure_curves, plan_points
from ssdd_hub.studies.cost_curves_report import curves_markdown, curves_table, fit_curves, render_curves

DEFAULT = Path(__file__).parent / "configs" / "cost_curves.yaml"


@report_errors
def main() -> None:
    """All points that are missing, then tables and picture of all."""
    started = time.perf_counter()
    config = parse_config(CostCurvesConfig, DEFAULT, description=__doc__)
    # Points are measured by processes of their own; this one tells the device, and waits.
    accelerator = build_accelerator(config.run, Path(config.output))
    if accelerator.num_processes > 1:
        raise InputError(f"one process is required, got {accelerator.num_processes}: launch with --num_processes 1")
    run = RunFolder(Path(config.output), to_dict(config))
    print(to_yaml(config))

    points = plan_points(config.curves, config.benchmark, config.distiller, config.student)
    run.start()
    records = measure_curves(points, config.curves, config.seed, config.run, run.log)
    machine, seconds = describe_machine(accelerator.device, 1), time.perf_counter() - started
    facts = {"machine": machine, "versions": describe_versions(), "command": describe_command()}
    results = {"records": records, "exponents": fit_curves(records), "settings": to_dict(config)}
    run.write_json("cost_curves.json", {**results, **facts, "seconds": seconds})
    with atomic_path(run.path / "cost_curves.md") as temporary:
        temporary.write_text(curves_markdown(records), encoding="utf-8")
    render_curves(run.path / "cost_curves.png", records)
    print(curves_table(records))
    print(f"\nIn {run.path} after {seconds:.0f} s: cost_curves.json, cost_curves.md, cost_curves.png, log.jsonl")
    accelerator.end_training()


if __name__ == "__main__":
    main()

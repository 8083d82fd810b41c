"""What `test_estimate.py` runs on two processes: each times the stages for itself, and all must decide alike."""

import json
import sys
import time
from pathlib import Path

import torch

from ssdd_hub.runs.begin import begin
from ssdd_hub.runs.estimate import Stage, estimate, time_steps
from train_teacher import TrainTeacherConfig


def main(folder):
    config = TrainTeacherConfig(output=str(folder / "run"), minutes=1)
    accelerator, run = begin(config)
    rank = accelerator.process_index
    done = []

    def slower_on_one():
        # As the gradients of a step: it waits for the other process.
        done.append(accelerator.reduce(torch.ones(1)))
        time.sleep(0.001 + 0.1 * rank)

    def stages():
        time_steps(slower_on_one, 10_000, accelerator)
        yield Stage("teacher", 100, 5.0 * (rank + 1), lambda steps: {"teacher_training.max_steps": steps})

    config, made = estimate(config, run, accelerator, time.perf_counter(), stages)
    run.start()
    found = {"steps": config.teacher_training.max_steps, "seconds": made.stages[0].seconds, "timed": len(done)}
    (folder / f"process-{rank}.json").write_text(json.dumps(found))
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""A run that does little but start, log and save, to be killed at any moment and started again."""

import sys
from pathlib import Path

import torch

from ssdd_hub.files import replaced_folder
from ssdd_hub.record import METADATA_FILE
from ssdd_hub.runs.folder import RunFolder

STEPS = 60


def main(folder):
    run = RunFolder(Path(folder), {"seed": 1, "notes": ["a"] * 1000})
    run.start({"source": {"fingerprint": "a" * 64}})
    saved = run.checkpoints.load_newest() or {"step": 0, "sum": torch.zeros(20_000)}
    step, total = saved["step"], saved["sum"]
    run.log.rewind("distill", step)
    while step < STEPS:
        step, total = step + 1, total + torch.arange(20_000.0) / (step + 1)
        run.log.write([{"stage": "distill", "step": step, "sum": total.sum().item()}])
        if step % 3 == 0:
            run.checkpoints.save(step, {"step": step, "sum": total})
    run.write_json("scores.json", {"sum": total.sum().item()})
    with replaced_folder(run.path / "distilled") as new:
        (new / METADATA_FILE).write_text(str(total.sum().item()))


if __name__ == "__main__":
    main(*sys.argv[1:])

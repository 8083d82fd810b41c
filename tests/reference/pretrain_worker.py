"""What `test_pretrain_distributed.py` runs on two processes: a training, unbroken, and broken and resumed."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from ssdd_hub.data.bank import DataSettings, load_images
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.runs.checkpoints import Checkpoints, save_tree
from ssdd_hub.runs.folder import RunLog
from ssdd_hub.teachers.monitor import Watch, WatchSettings
from ssdd_hub.teachers.training import Pretraining, TeacherTrainingSettings, new_backbone


class Interrupted(Exception):
    pass


def prepare(accelerator, source):
    settings = TeacherTrainingSettings(
        objective="byol",  # which has a copy of the network too
        objective_args={"hidden_dim": 16, "output_dim": 8},
        batch_size=24,
        epochs=2,
        checkpoint_every=2,
        workers=0,
        view_args={"hf_prob": 0.0},
    )
    backbone = new_backbone("ssdd_convnet3", 1, 16, 0, widths=(4, 6))
    space = PixelSpace.of(source.pixels)
    return Pretraining(backbone, source.pixels, space, settings, seed=0, accelerator=accelerator)


def run(training, folder, watch=None):
    folder.mkdir(exist_ok=True)
    log = RunLog(folder / "log.jsonl", training.accelerator.is_main_process)
    training.run(Checkpoints(folder / "checkpoints"), log, watch, progress=False)


def interrupt(training, after):
    step, left = training._step, iter(range(after))

    def interrupted(*arguments):
        if next(left, None) is None:
            raise Interrupted
        step(*arguments)

    training._step = interrupted
    return training


def main(folder):
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    source, heldout = (bank.subset(range(60)) for bank in load_images(DataSettings(), progress=False))
    watch = Watch(source, heldout, PixelSpace.of(source.pixels), WatchSettings(every=1), seed=0)
    unbroken = prepare(accelerator, source)
    run(unbroken, folder / "unbroken", watch)
    try:
        run(interrupt(prepare(accelerator, source), 3), folder / "broken", watch)
    except Interrupted:
        accelerator.free_memory()
    accelerator.wait_for_everyone()
    resumed = prepare(accelerator, source)
    run(resumed, folder / "broken", watch)
    states = {"unbroken": unbroken.objective.state_dict(), "resumed": resumed.objective.state_dict()}
    save_tree(folder / f"process-{accelerator.process_index}.safetensors", states)
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

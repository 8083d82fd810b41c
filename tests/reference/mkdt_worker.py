"""A run of MKDT in a folder, on one process or two, to be killed at any moment and started again."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

sys.path.append(str(Path(__file__).parents[1]))

from reference import contract_cases
from reference.contract_cases import SIDE, B, D, M, batches, make_pairs

from ssdd_hub.distill.distiller import Distiller, DistillerSettings
from ssdd_hub.distill.engine import EngineSettings, build_engine
from ssdd_hub.distill.loop import distil
from ssdd_hub.distill.method import Problem
from ssdd_hub.distill.methods.mkdt import Mkdt, MkdtSettings
from ssdd_hub.distill.parameterisations.pixels import Pixels
from ssdd_hub.models.convnet import ConvNet
from ssdd_hub.runs.checkpoints import save_tree
from ssdd_hub.runs.folder import RunFolder
from ssdd_hub.runs.run_settings import RunSettings

SETTINGS = MkdtSettings(experts=3, expert_steps=8, unroll=4, unroll_batch=4)


def main(folder):
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    run = RunFolder(folder, {}, accelerator.is_main_process)
    run.start()
    place = {"rank": accelerator.process_index, "world": accelerator.num_processes}
    engine = build_engine(EngineSettings(precision="float64"), accelerator)
    kept = run.path / "checkpoints" / "method"
    problem = Problem(batches, lambda: ConvNet((4, 5), "batch", 1, SIDE, D), engine, B, **place, folder=kept)
    first = Pixels.start(make_pairs(M, 99), contract_cases.settings_of(Pixels))
    settings = DistillerSettings(num_images=M, batch_size=B, steps=12, precision="float64")
    distiller = Distiller(first, Mkdt(SETTINGS, problem), settings, accelerator)
    distil(distiller, run, RunSettings(checkpoint_every=3, log_every=1), progress=False)
    save_tree(folder / f"images-{place['rank']}.safetensors", distiller.images)
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

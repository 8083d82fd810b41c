"""Every method with every parameterisation on one small problem, the toys too; as a script, ten steps of each."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

sys.path.append(str(Path(__file__).parents[1] / "distill"))

from toy_method import MeanMatch
from toy_parameterisation import Tiles

from ssdd_hub.distill.distiller import Distiller, DistillerSettings
from ssdd_hub.distill.engine import EngineSettings, build_engine
from ssdd_hub.distill.method import Problem
from ssdd_hub.distill.methods.registry import METHODS
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations.registry import PARAMETERISATIONS
from ssdd_hub.distill.pool import PoolSettings
from ssdd_hub.models.convnet import ConvNet
from ssdd_hub.runs.checkpoints import save_tree

# A batch that two processes cannot share evenly.
M, B, D, SIDE, STEPS = 6, 7, 3, 8, 10
METHOD_CLASSES = {**METHODS.known, MeanMatch.name: MeanMatch}
PARAMETERISATION_CLASSES = {**PARAMETERISATIONS.known, Tiles.name: Tiles}
CASES = [(method, name) for method in METHOD_CLASSES for name in PARAMETERISATION_CLASSES]
SHARED = {"lr_images": 1e-2, "lr_targets": 1e-2, "ridge": 1e-3, "pool": PoolSettings(size=2, max_age=4)}
# Few and short trajectories, and starts at two of their epochs.
SHARED |= {"experts": 2, "expert_steps": 2, "expert_epochs": 3, "unroll": 3, "unroll_batch": 4, "min_start": 0}
SHARED |= {"max_start": 2, "first_max_start": 1, "expert_learning_rate": 0.1, "step_size": 0.1}


def make_pairs(count, seed):
    source = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, SIDE, SIDE, generator=source, dtype=torch.float64)
    return Pairs(images, torch.randn(count, D, generator=source, dtype=torch.float64))


def batches(step, rank=0, world=1, size=B):
    """A batch that depends on the step alone, sliced as the real ones are."""
    mine = slice(rank * size // world, (rank + 1) * size // world)
    return tuple(part[mine] for part in make_pairs(size, step))


def build(method, parameterisation, accelerator, kind="fast"):
    """Returns a distiller of the problem."""
    engine = build_engine(EngineSettings(kind=kind, precision="float64"), accelerator)
    problem = Problem(
        batches,
        lambda: ConvNet((4, 5), "batch", 1, SIDE, D),
        engine,
        B,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    learned, judge = PARAMETERISATION_CLASSES[parameterisation], METHOD_CLASSES[method]
    first = learned.start(make_pairs(M, 99), settings_of(learned))
    settings = DistillerSettings(num_images=M, batch_size=B, steps=STEPS, precision="float64")
    return Distiller(first, judge(settings_of(judge), problem), settings, accelerator)


def settings_of(kind):
    known = kind.Settings.__dataclass_fields__
    return kind.Settings(**{name: value for name, value in SHARED.items() if name in known})


def run(distiller, steps):
    """Returns the losses of some steps."""
    return torch.stack([distiller.step()["loss"] for _ in range(steps)])


def main(folder):
    torch.set_num_threads(1)
    accelerator, results = Accelerator(cpu=True), {}
    for method, parameterisation in CASES:
        distiller = build(method, parameterisation, accelerator)
        for _ in distiller.warm_up():
            pass
        losses = run(distiller, STEPS)
        results[f"{method}-{parameterisation}"] = {"losses": losses, "images": distiller.images.detach()}
    save_tree(folder / f"process-{accelerator.process_index}.safetensors", results)
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

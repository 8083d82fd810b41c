"""Every method with every parameterisation on one small problem, the toys too; as a script, some steps of some."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.nn.functional import one_hot

sys.path.append(str(Path(__file__).parents[1] / "distill"))

from toy_method import MeanMatch
from toy_parameterisation import Tiles
from wrapped import Boost, PredictedViews, ViewsOfDct

from ssdd_hub.data.bank import ImageBank
from ssdd_hub.distill.distiller import Distiller, DistillerSettings
from ssdd_hub.distill.engine import EngineSettings, build_engine
from ssdd_hub.distill.method import Problem
from ssdd_hub.distill.methods.registry import METHODS
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations.registry import PARAMETERISATIONS
from ssdd_hub.distill.pool import PoolSettings
from ssdd_hub.models.convnet import ConvNet
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.runs.checkpoints import save_tree
from ssdd_hub.selection.source import Source

# A batch that two processes cannot share evenly.
M, B, D, SIDE, STEPS = 6, 7, 3, 8, 10
# Variants with class labels as targets.
LABELLED = {
    "frepo_labels": (METHODS.known["frepo"], {"flip": True, "pool": PoolSettings(2, 4, optimizer="adam")}),
    "rfad_labels": (METHODS.known["rfad"], {"loss": "cross_entropy", "redraw_every": 3}),
    "clp_dd": (METHODS.known["clp_dd"], {"backbone": "student"}),
    "clp_dd_views": (METHODS.known["clp_dd"], {"backbone": "student", "augment": "flip-resize-noise", "views": 2}),
    "lgm_labels": (METHODS.known["lgm"], {"real_views": 2}),
    **{name: (METHODS.known[name], {}) for name in ("mtt", "tesla", "datm")},
}
METHOD_CLASSES = {**METHODS.known, **{name: kind for name, (kind, _) in LABELLED.items()}, MeanMatch.name: MeanMatch}
OTHERS = (Tiles, ViewsOfDct, PredictedViews, Boost)
PARAMETERISATION_CLASSES = {**PARAMETERISATIONS.known, **{each.name: each for each in OTHERS}}
# Neither side knows the other: each with two of the other.
CASES = [
    (method, name)
    for method in METHOD_CLASSES
    for name in PARAMETERISATION_CLASSES
    if method in ("krr_st", MeanMatch.name) or name in ("pixels", "factor") or (method, name) == ("lgm", "pyramid")
]
# A method sees a parameterisation by its pairs alone, so that a second one for each takes time more than it shows.
FIRST = [case for case in CASES if case[0] == "krr_st" or case[1] in ("pixels", "pyramid")]
every_case = pytest.mark.parametrize(
    ("method", "parameterisation"),
    [case if case in FIRST else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
SHARED = {
    **{"lr_images": 1e-2, "lr_targets": 1e-2, "ridge": 1e-3, "penalty": 1e-2},
    **{"pool": PoolSettings(size=2, max_age=4)},
    # Few groups, seen in part, and short trainings.
    **{"num_groups": 3, "real_images": 5, "set_images": 3, "training_steps": 2, "training_batch": 4},
    # Few and short trajectories, and starts at two of their epochs.
    **{"experts": 2, "expert_steps": 2, "expert_epochs": 3, "unroll": 3, "unroll_batch": 4, "min_start": 0},
    # A layer of a pyramid more after every third step.
    **{"every": 3},
    **{"max_start": 2, "first_max_start": 1, "expert_learning_rate": 0.1, "step_size": 0.1},
}


def make_pairs(count, seed, labelled=False):
    source = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, SIDE, SIDE, generator=source, dtype=torch.float64)
    targets = torch.randn(count, D, generator=source, dtype=torch.float64)
    return Pairs(images, one_hot(targets.argmax(1), D).double() - 1 / D if labelled else targets)


def batches(step, rank=0, world=1, size=B, labelled=False):
    """A batch that depends on the step alone, sliced as the real ones are."""
    mine = slice(rank * size // world, (rank + 1) * size // world)
    return tuple(part[mine] for part in make_pairs(size, step, labelled))


def make_source(count=21, labels=None):
    """Returns real images with targets; where they have labels, these are centred one-hot vectors."""
    pairs, space = make_pairs(count, 98), PixelSpace((0.5,), (0.25,))
    pixels = (space.denormalise(pairs.images).clamp(0, 1) * 255).to(torch.uint8)
    targets = pairs.targets if labels is None else torch.nn.functional.one_hot(labels, D).double() - 1 / D
    teacher = torch.nn.Identity() if labels is None else None
    return Source(ImageBank(pixels, labels, None, {}), targets, teacher, None, space)


def build(method, parameterisation, accelerator, kind="fast", source=None, place=None, student=ConvNet, **changed):
    """Returns a distiller of the problem; `place` are fields of it, and changed are settings of the method."""
    engine = build_engine(EngineSettings(kind=kind, precision="float64"), accelerator)
    labelled = method in LABELLED
    changed = {**(LABELLED[method][1] if labelled else {}), **changed}
    place = {"rank": accelerator.process_index, "world": accelerator.num_processes, **(place or {})}
    problem = Problem(
        partial(batches, labelled=labelled),
        lambda: student((4, 5), "batch", 1, SIDE, D),
        engine,
        B,
        source=source or make_source(labels=torch.arange(21) % D if labelled else None),
        **place,
    )
    learned, judge = PARAMETERISATION_CLASSES[parameterisation], METHOD_CLASSES[method]
    first = learned.start(make_pairs(M, 99, labelled), settings_of(learned))
    settings = DistillerSettings(num_images=M, batch_size=B, steps=STEPS, precision="float64")
    return Distiller(first, judge(settings_of(judge, **changed), problem), settings, accelerator)


def settings_of(kind, **changed):
    known = kind.Settings.__dataclass_fields__
    own = {
        "rfad": {"networks": 2},
        "lgm": {"backbone": "student", "views": 3},
        # In steps that leave some bits to lower.
        "dct": {"step": 0.5, "target_step": 0.25, "rate": 1e-2},
    }.get(kind.name, {})
    return kind.Settings(**{name: value for name, value in SHARED.items() if name in known} | own | changed)


def run(distiller, steps):
    """Returns the losses of some steps."""
    return torch.stack([distiller.step()["loss"] for _ in range(steps)])


def main(folder, *names):
    torch.set_num_threads(1)
    accelerator, results = Accelerator(cpu=True), {}
    for name in names:
        distiller = build(*name.split("-", 1), accelerator)
        for _ in distiller.warm_up():
            pass
        losses = run(distiller, 6)
        results[name] = {"losses": losses, "images": distiller.images.detach()}
    save_tree(folder / f"process-{accelerator.process_index}.safetensors", results)
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])

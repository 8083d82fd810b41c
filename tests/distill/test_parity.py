"""The authors' released algorithm, step by step: recorded tensors against `ConvNet`, `StudentPool`, `Distiller`."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open

from ssdd_hub.distill.distiller import Distiller, DistillerSettings
from ssdd_hub.distill.engine import winograd
from ssdd_hub.distill.engine.build import build_engine
from ssdd_hub.distill.pool import PoolSettings, StudentPool
from ssdd_hub.models.convnet import ConvNet

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "parity"
CASES = {"convnet-8-16-bn_16px_f64": 1e-8, "convnet-16-32-64-bn_32px_f64": 1e-8, "convnet-8-16-bn_16px": 1e-3}


def relative_error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


def read(name):
    path = FOLDER / f"{name}.safetensors"
    if not path.exists():
        pytest.skip("the recorded tensors of the reference algorithm are not beside this clone")
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()


def load_in_layer_order(student, tensors, prefix):
    """Their names differ and do not sort as layers do (the head `fc` comes first), but blocks and entries do."""
    kinds = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    names = sorted(
        (name for name in tensors if name.startswith(prefix) and ".fc." not in name),
        key=lambda name: (name.split(".")[2], name.split(".")[4], kinds.index(name.split(".")[5])),
    ) + [f"{prefix}.fc.weight", f"{prefix}.fc.bias"]
    state = student.state_dict()
    assert len(state) == len(names)
    return dict(zip(state, (tensors[name] for name in names), strict=True))


PATHS = {
    "whole": {"winograd": False},
    "winograd": {},
    "micro-batched": {"micro_batch": 7},
    "recomputed": {"micro_batch": 7, "memory_budget": 1e-9},
    "compiled": {"compile": True, "winograd": False},
    "compiled winograd": {"compile": True},
    "compiled and recomputed": {"compile": True, "micro_batch": 7, "memory_budget": 1e-9},
}


def cases():
    for name in CASES:
        for path in PATHS:
            # Compilers take their time: the smallest case alone is compiled each time, in one way.
            slow = "compiled" in path and (name, path) != ("convnet-8-16-bn_16px_f64", "compiled and recomputed")
            yield pytest.param(name, path, marks=pytest.mark.slow if slow else (), id=f"{name}-{path}")


@pytest.mark.parametrize(("name", "path"), list(cases()))
def test_the_recorded_run_of_the_reference_code_is_reproduced(name, path, monkeypatch):
    # The recorded students are narrow.
    monkeypatch.setattr(winograd, "MANY_CHANNELS", 1)
    tensors, metadata = read(name)
    tolerance = CASES[name]
    dtype = getattr(torch, metadata["dtype"])
    steps = int(metadata["outer_steps"])
    widths = tuple(int(width) for width in metadata["student"].split("_")[1:-1])
    settings = DistillerSettings(
        num_images=int(metadata["M"]),
        steps=steps,
        batch_size=int(metadata["B"]),
        lr_images=float(metadata["outer_lr"]),
        lr_targets=float(metadata["outer_lr"]),
        precision=metadata["dtype"],
        **PATHS[path],
    )
    pool = StudentPool(
        lambda: ConvNet(widths, "batch", 3, int(metadata["image_size"]), int(metadata["target_dim"])),
        PoolSettings(size=1, max_age=1000, warm_up=False),
        seed=0,
        dtype=dtype,
        step=build_engine(settings.computing(), Accelerator(cpu=True)).regression_step,
    )
    student = pool.students[0].module
    student.load_state_dict(load_in_layer_order(student, tensors, "student_init"))
    errors = {}

    def compare(label, ours, theirs):
        errors[label] = relative_error(ours.to(torch.float64), theirs.to(torch.float64))

    images, targets = tensors["images_init"], tensors["targets_init"]
    for i in range(int(metadata["inner_warm_steps"])):
        compare(f"inner_loss.{i}", pool.advance(0, images, targets), tensors[f"inner_loss.{i}"])
    for entry, theirs in load_in_layer_order(student, tensors, "student_warm").items():
        compare(f"student_warm.{entry}", student.state_dict()[entry], theirs)

    distiller = Distiller(
        images,
        targets,
        pool,
        lambda step, rank, world: (tensors[f"real.{step}"], tensors[f"real_targets.{step}"]),
        settings,
        Accelerator(cpu=True),
    )
    _, *gradients = distiller.method.gradients(distiller.parameterisation().detached(), 0)
    compare("grad_images.0", gradients[0], tensors["grad_images.0"])
    compare("grad_targets.0", gradients[1], tensors["grad_targets.0"])
    for s in range(steps):
        compare(f"outer_loss.{s}", distiller.step()["loss"], tensors[f"outer_loss.{s}"])
        compare(f"images.{s + 1}", distiller.images.detach(), tensors[f"images.{s + 1}"])
        compare(f"targets.{s + 1}", distiller.targets.detach(), tensors[f"targets.{s + 1}"])
    for entry, theirs in load_in_layer_order(student, tensors, "student_final").items():
        compare(f"student_final.{entry}", student.state_dict()[entry], theirs)
    print(json.dumps({"case": name, "path": path, "compared": len(errors), "largest": max(errors.values())}))
    assert max(errors.values()) <= tolerance, {key: value for key, value in errors.items() if value > tolerance}

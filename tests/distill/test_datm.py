"""Trajectory matching on class labels: which steps move the labels of the set."""

from itertools import pairwise

import pytest
import torch
from reference.contract_cases import SHARED, SIDE, B, D, M, batches, make_pairs

from ssdd_hub.distill.distiller import Distiller, DistillerSettings
from ssdd_hub.distill.engine import EngineSettings, build_engine
from ssdd_hub.distill.method import Problem
from ssdd_hub.distill.methods.mtt import DatmSettings, MttSettings, TeslaSettings
from ssdd_hub.distill.methods.registry import build_method
from ssdd_hub.distill.parameterisations.base import LearningRates
from ssdd_hub.distill.parameterisations.pixels import Pixels
from ssdd_hub.models.convnet import ConvNet
from ssdd_hub.runs.checkpoints import load_tree, save_tree


def test_defaults_are_those_of_the_released_settings():
    assert (MttSettings().lr_step_size, MttSettings().unroll, TeslaSettings().lr_step_size) == (1e-5, 20, 1e-5)
    # configs/CIFAR-100/ConvIN/IPC10.yaml of DATM.
    found, names = DatmSettings(), "unroll match_epochs step_size lr_step_size min_start first_max_start max_start"
    assert [getattr(found, name) for name in names.split()] == [80, 2, 0.01, 1e-5, 0, 30, 50]
    assert (found.growth_steps, found.learn_targets_below, found.unroll_batch) == (2000, 1.0, 1000)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb"])
def test_momentum_does_not_move_targets_either_in_steps_of_large_loss(accelerator, tmp_path, optimizer):
    losses = [float(step["loss"]) for step in moves(accelerator, optimizer, None)]
    limit = sorted(losses)[3]
    found, below = list(moves(accelerator, optimizer, limit)), list[bool]()
    for before, step in pairwise([None, *found]):
        below.append(float(step["loss"]) < limit)
        if before:
            assert torch.equal(step["targets"], before["targets"]) != below[-1]
            assert not torch.equal(step["images"], before["images"])
    # Some steps move targets, and some after these do not.
    assert True in below and False in below[below.index(True) :]
    # A run that is stopped before and after the first such step goes on as before.
    for stop in (1, below.index(True) + 1):
        *_, last = moves(accelerator, optimizer, limit, stop, tmp_path / "state.safetensors")
        assert torch.equal(last["targets"], found[-1]["targets"]) and torch.equal(last["images"], found[-1]["images"])


def moves(accelerator, optimizer, limit, stop=None, saved=None):
    """Yields loss, images and targets of the steps of a distillation, which is loaded from a file after `stop`."""

    def start():
        engine = build_engine(EngineSettings(precision="float64"), accelerator)
        problem = Problem(batches, lambda: ConvNet((3, 4), "instance", 1, SIDE, D), engine, B)
        method = build_method("datm", problem, {"learn_targets_below": limit, "dsa": False}, SHARED)
        method.rehearse()
        settings = DistillerSettings(num_images=M, batch_size=B, steps=8, optimizer=optimizer, final_lr=1.0)
        first = Pixels.start(make_pairs(M, 99), LearningRates(1e-2, 1e-2))
        return Distiller(first, method, settings, accelerator)

    distiller = start()
    for step in range(8):
        if step == stop:
            save_tree(saved, distiller.state_dict())
            distiller = start()
            distiller.load_state_dict(load_tree(saved))
        loss = distiller.step()["loss"]
        yield {"loss": loss, "images": distiller.images.clone(), "targets": distiller.targets.clone()}

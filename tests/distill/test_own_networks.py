"""Several processes with networks of their own: one set, the mean of the gradients, and an exact resume."""

import os
from pathlib import Path

import pytest
import torch
from reference import own_networks_worker
from reference.contract_cases import STEPS, B, batches, build
from reference.own_networks_worker import METHODS
from reference.warm import start_two
from test_loop import stop_at

from distill import DistillConfig
from ssdd_hub.distill.distiller import Distiller, DistillerSettings
from ssdd_hub.distill.krr import Regression
from ssdd_hub.distill.loop import distil
from ssdd_hub.distill.method import Problem
from ssdd_hub.distill.methods.registry import own_networks_check
from ssdd_hub.distill.registry import MethodSettings
from ssdd_hub.errors import SettingsError
from ssdd_hub.models.features import pre_logits
from ssdd_hub.runs.checkpoints import load_tree
from ssdd_hub.runs.folder import RunFolder
from ssdd_hub.runs.run_settings import RunSettings

every_method = pytest.mark.parametrize("method", METHODS)
OWN = {"own_networks": True}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The results of each of two processes."""
    folder = tmp_path_factory.mktemp("both")
    for running in start_two(Path(own_networks_worker.__file__), folder):
        running.finish()
    return [load_tree(folder / f"process-{rank}.safetensors") for rank in (0, 1)]


def prepared(method, accelerator, **place):
    distiller = build(method, "pixels", accelerator, place=place)
    for _ in distiller.warm_up():
        pass
    return distiller


@every_method
def test_both_processes_hold_the_same_set_and_a_resumed_run_is_the_unbroken_one(both, method):
    first, second = (found[method] for found in both)
    for name in ("images", "losses"):
        assert torch.equal(first[name], second[name])
    for found in (first, second):
        assert torch.equal(found["resumed"], found["images"])


@every_method
def test_the_gradient_is_the_mean_over_the_processes(both, accelerator, method):
    ranks = [prepared(method, accelerator, rank=rank, world=2, **OWN) for rank in (0, 1)]
    losses, gradients = [], []
    for rank in ranks:
        leaves = rank.parameterisation().detached().leaves()
        losses.append(rank.method.loss(leaves, 0))
        gradients.append(torch.autograd.grad(losses[-1], leaves, allow_unused=True, materialize_grads=True))
    assert losses[0].item() != pytest.approx(losses[1].item(), rel=1e-3)
    torch.testing.assert_close(both[0][method]["losses"][0], sum(losses).detach() / 2, rtol=1e-9, atol=0)
    for found, *each in zip(both[0][method]["gradients"], *gradients, strict=True):
        torch.testing.assert_close(found, sum(each) / 2, rtol=1e-8, atol=1e-12)


def test_each_real_image_is_predicted_through_the_student_of_its_process(both, accelerator):
    squares, drawn = 0.0, []
    for rank in (0, 1):
        distiller = prepared("krr_st", accelerator, rank=rank, world=2, **OWN)
        student = distiller.pool.student(distiller.pool.draw(0)).eval()
        images, targets = batches(0, rank, 2)
        with torch.no_grad():
            own, real = pre_logits(student, distiller.images), pre_logits(student, images)
            fitted = Regression(own, distiller.targets, distiller.method.settings.ridge)
            squares += (fitted.predict(real) - targets).square().mean(1).sum()
        drawn.append(next(student.parameters()))
    assert not torch.equal(*drawn)
    torch.testing.assert_close(both[0]["krr_st"]["losses"][0], squares / B, rtol=1e-9, atol=0)


def test_a_seed_is_a_function_of_seed_and_process(accelerator):
    def seed(rank, own, seed=0):
        return Problem(batches, None, None, B, seed, rank=rank, world=3, own_networks=own).network_seed

    assert seed(0, True) == seed(0, False) == seed(2, False) == 0
    assert len({seed(rank, True, run) for rank in range(3) for run in range(3)}) == 9


def test_alone_a_process_makes_what_it_makes_without_them_and_goes_on_by_two_files(accelerator, tmp_path):
    def start(name, **place):
        run = RunFolder(tmp_path / name, {})
        run.start()
        return build("krr_st", "pixels", accelerator, place=place), run, RunSettings(checkpoint_every=4)

    unbroken, *rest = start("shared")
    distil(unbroken, *rest, progress=False)
    stopped, *rest = start("own", **OWN)
    stop_at(stopped, 6)
    with pytest.raises(KeyboardInterrupt):
        distil(stopped, *rest, progress=False)
    resumed, run, settings = start("own", **OWN)
    distil(resumed, run, settings, progress=False)
    assert torch.equal(resumed.images, unbroken.images)
    names = [f"{part}step-{step:08d}.safetensors" for part in ("process-00000-", "") for step in (8, STEPS)]
    assert sorted(os.listdir(run.checkpoints.folder)) == names


# What cannot be


@pytest.mark.parametrize("method", ["clp_dd", "mean_match"])
def test_a_method_without_networks_of_its_own_refuses(accelerator, method):
    with pytest.raises(SettingsError, match=f"own_networks gives .* method {method} has none.*: leave it at false"):
        build(method, "pixels", accelerator, place=OWN)


def test_the_recipe_refuses_before_any_work():
    with pytest.raises(SettingsError, match="the method clp_dd has none"):
        DistillConfig(method=MethodSettings("clp_dd"), distiller=DistillerSettings(**OWN))
    assert own_networks_check("unknown", True) == (True, "")


def test_the_setting_alone_gives_no_networks(accelerator):
    shared = build("krr_st", "pixels", accelerator)
    with pytest.raises(SettingsError, match=r"own_networks needs a method .* Problem\(..., own_networks=True\)"):
        Distiller(shared.parameterisation, shared.method, DistillerSettings(**OWN), accelerator)

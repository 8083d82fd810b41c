import math
from dataclasses import replace

import pytest
import torch
from test_distiller import build_distiller

from ssdd_hub.distill.loop import distil
from ssdd_hub.errors import InputError
from ssdd_hub.runs.folder import RunFolder
from ssdd_hub.runs.run_settings import RunSettings

SETTINGS = RunSettings(checkpoint_every=4, log_every=3)


def start(folder, **settings):
    distiller = build_distiller(precision="float32", **settings)
    distiller.pool.settings = type(distiller.pool.settings)(size=2, max_age=3, warm_up=True)
    run = RunFolder(folder, {}, is_main=True)
    run.start()
    return distiller, run


def stop_at(distiller, step):
    """Lets the process die, as far as files go, in the middle of an outer step."""
    original = distiller.step

    def dying():
        if distiller.outer_step == step:
            raise KeyboardInterrupt
        return original()

    distiller.step = dying


def test_the_log_holds_every_step_of_every_stage(tmp_path):
    distiller, run = start(tmp_path / "run")
    seconds = distil(distiller, run, SETTINGS, progress=False)
    records = run.log.read()
    warm_up = sum(distiller.pool.first_ages())
    assert [record["stage"] for record in records] == ["pool"] * warm_up + ["distill"] * 10
    assert [record["step"] for record in records[warm_up:]] == list(range(1, 11))
    assert set(records[-1]) == {"stage", "step", "loss", "inner_loss", "student", "age", "lr"}
    assert seconds > 0


@pytest.mark.parametrize("stop", [0, 3, 4, 7, 9])
def test_an_interrupted_run_goes_on_to_the_bytes_of_the_unbroken_one(tmp_path, stop):
    unbroken, whole = start(tmp_path / "whole")
    distil(unbroken, whole, SETTINGS, progress=False)
    stopped, run = start(tmp_path / "run")
    stop_at(stopped, stop)
    with pytest.raises(KeyboardInterrupt):
        distil(stopped, run, SETTINGS, progress=False)
    # A kill in the middle of a write leaves a torn line.
    with run.log.path.open("a") as log:
        log.write('{"stage": "distill", "st')
    resumed, run = start(tmp_path / "run")
    distil(resumed, run, SETTINGS, progress=False)
    assert torch.equal(resumed.images, unbroken.images)
    assert torch.equal(resumed.targets, unbroken.targets)
    assert run.log.path.read_bytes() == whole.log.path.read_bytes()
    names = [path.name for path in (tmp_path / "run" / "checkpoints" / "distiller").iterdir()]
    assert sorted(names) == ["step-00000008.safetensors", "step-00000010.safetensors"]


def test_a_finished_run_started_again_does_nothing(tmp_path):
    distiller, run = start(tmp_path / "run")
    distil(distiller, run, SETTINGS, progress=False)
    before = run.log.path.read_bytes()
    again, run = start(tmp_path / "run")
    again.step = None
    distil(again, run, SETTINGS, progress=False)
    assert torch.equal(again.images, distiller.images)
    assert run.log.path.read_bytes() == before


def test_no_steps_leave_the_first_images(tmp_path):
    distiller, run = start(tmp_path / "run", steps=0)
    before = distiller.images.detach().clone()
    distil(distiller, run, SETTINGS, progress=False)
    assert torch.equal(before, distiller.images)


def test_a_diverging_run_stops_with_advice_and_keeps_its_last_good_state(tmp_path):
    distiller, run = start(tmp_path / "run")
    batches = distiller.method.problem.batches

    def broken(step, rank, world):
        return tuple(part * (float("nan") if step == 6 else 1) for part in batches(step, rank, world))

    distiller.method.problem = replace(distiller.method.problem, batches=broken)
    with pytest.raises(InputError, match="distill loss is nan at step 7: lower --distiller.lr-images"):
        distil(distiller, run, SETTINGS, progress=False)
    assert run.checkpoints.load_newest()["distiller"]["outer_step"] == 4
    assert all(math.isfinite(record["loss"]) for record in run.log.read())

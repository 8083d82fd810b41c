import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from reference import contract_cases
from test_distiller import build_distiller

from ssdd_hub.distill.loop import _advice, distil
from ssdd_hub.distill.methods import METHODS
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
    assert set(records[-1]) == {"stage", "step", "loss", "inner_loss", "student", "age", "generation", "lr"}
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


class TracedBatches:
    """Batches that tell their rows, and of which that of step 7 has no finite targets, if it is to be."""

    def __init__(self, batches, broken):
        self.batches, self.broken = batches, broken

    def rows(self, step):
        # An image that is drawn twice is told once.
        return torch.tensor([90, 4, 90, *range(10, 12 + 5 * step)])

    def __call__(self, step, rank, world):
        images, targets = self.batches(step, rank, world)
        return images, targets * math.nan if self.broken and step == 6 else targets


@pytest.mark.parametrize(
    ("broken", "what"),
    [("loss", "loss is nan"), ("gradient", r"loss is 0\.\d+ and its gradient is not finite")],
)
def test_a_step_that_is_not_finite_ends_the_run_and_is_told_with_its_student_and_its_images(tmp_path, broken, what):
    distiller, run = start(tmp_path / "run")
    traced = TracedBatches(distiller.method.problem.batches, broken == "loss")
    distiller.method.problem = replace(distiller.method.problem, batches=traced)
    gradients = distiller.method.gradients

    def overflowing(pairs, step):
        loss, images, targets = gradients(pairs, step)
        if broken == "gradient" and step == 6:
            images[2, 0, 1, 1] = math.inf
        return loss, images, targets

    distiller.method.gradients = overflowing
    with pytest.raises(InputError, match=rf"the distill {what} at step 7, of student ") as caught:
        distil(distiller, run, SETTINGS, progress=False)
    unbroken, whole = start(tmp_path / "whole")
    distil(unbroken, whole, SETTINGS, progress=False)
    met = next(each for each in whole.log.read() if each["stage"] == "distill" and each["step"] == 7)
    rows = "4, " + ", ".join(map(str, range(10, 41))) + ", ... (34 in all, by Method.real_rows)"
    assert met["generation"] > 0
    told = (
        f"student {met['student']} of the pool (generation {met['generation']}, age {met['age']}) and the real images"
    )
    assert f"{told} in rows {rows}; the checkpoint of step 4 is whole. Lower --distiller.lr-images" in str(
        caught.value
    )
    saved = run.checkpoints.load_newest()["distiller"]
    assert saved["outer_step"] == 4
    assert all(part.isfinite().all() for part in saved["parameterisation"].values())
    assert all(math.isfinite(record["loss"]) for record in run.log.read())


@pytest.mark.parametrize(
    ("name", "network"),
    [
        *(("dm", "network 3"), ("dc", "network 0"), ("lgm_labels", ""), ("clp_dd", ""), ("rfad", "")),
        ("datm", "a student from expert 1 after epoch 0"),
    ],
)
def test_the_images_and_the_network_that_are_told_are_those_of_the_step(accelerator, monkeypatch, name, network):
    distiller, drawn = contract_cases.build(name, "pixels", accelerator), list[int]()
    method, traced = distiller.method, TracedBatches(distiller.method.problem.batches, False)
    method.problem = replace(method.problem, batches=traced)
    list(distiller.warm_up())
    if name in ("dm", "dc", "lgm_labels"):
        # What networks begin with is drawn before.
        method.gradients(distiller.rendered().detached(), 3)
        place = (method._kept, "draw") if name == "lgm_labels" else (method.groups, "at")
        known = getattr(*place)
        monkeypatch.setattr(*place, lambda rows, *step: drawn.extend(rows.tolist()) or known(rows, *step))
        method.gradients(distiller.rendered().detached(), 3)
    elif name != "datm":
        drawn += traced.rows(3).tolist()
    found = method.real_rows(3)
    assert drawn == ([] if found is None else found.tolist())
    assert method.network_of({"stage": "distill", "step": 4, "expert": 1, "epoch": 0}) == network


def test_a_student_that_diverges_ends_the_run_after_its_step(tmp_path):
    distiller, run = start(tmp_path / "run")
    advance = distiller.pool.advance

    def diverged(slot, images, targets):
        loss = advance(slot, images, targets)
        return loss if distiller.outer_step != 5 else loss * math.inf

    distiller.pool.advance = diverged
    with pytest.raises(InputError, match=r"and the inner loss inf at step 6, of student"):
        distil(distiller, run, SETTINGS, progress=False)


def test_the_first_training_of_a_student_that_diverges_is_told_with_its_slot_and_age(tmp_path):
    distiller, run = start(tmp_path / "run")
    ages, step = distiller.pool.first_ages(), distiller.pool.step
    passed = []

    def diverged(student, optimizer, pairs):
        passed.append(step(student, optimizer, pairs))
        return passed[-1] * (math.nan if len(passed) == ages[0] + 1 else 1)

    distiller.pool.step = diverged
    told = rf"the pool loss is nan at step {ages[0] + 1}, of student 1 of the pool \(generation 0, age 0\)\. Lower"
    with pytest.raises(InputError, match=told):
        distil(distiller, run, SETTINGS, progress=False)


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("krr_st", "or --pool.learning-rate"),
        ("mtt", "expert_learning_rate, --method.args.step_size or --method.args.lr_step_size"),
        ("lgm", "--distiller.lr-images or --distiller.lr-targets"),
    ],
)
@pytest.mark.parametrize("teacher", [None, "a teacher"])
def test_advice_names_what_a_method_has(name, rates, teacher):
    method = SimpleNamespace(settings=METHODS.settings(name, {}, {}))
    method.problem = SimpleNamespace(source=SimpleNamespace(teacher=teacher))
    told = _advice(method)
    assert rates in told
    assert ("pool" in told, "step_size" in told, "ridge" in told) == (
        name == "krr_st",
        name == "mtt",
        name == "krr_st",
    )
    assert ("teacher" in told) == ("standardise" in told) == bool(teacher)

"""The error on held-out images while a set is distilled."""

import math
from dataclasses import replace

import pytest
import torch
from reference import contract_cases
from reference.contract_cases import D, M, build, every_case
from test_distiller import build_distiller
from test_loop import SETTINGS, start, stop_at

from ssdd_hub.data.bank import ImageBank
from ssdd_hub.distill.heldout import POINTS, SHARE, HeldoutError
from ssdd_hub.distill.krr import predict
from ssdd_hub.distill.loop import distil
from ssdd_hub.models.features import pre_logits
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.seeds import generator

SPACE = PixelSpace((0.4,), (0.3,))


def heldout(count=300):
    drawn = generator(0, "held-out images of a test")
    pixels = torch.randint(0, 256, (count, 1, 8, 8), generator=drawn, dtype=torch.uint8)
    return ImageBank(pixels, None, None, {}), torch.randn(count, D, generator=drawn)


def plan(distiller, count=300):
    bank, targets = heldout(count)
    return HeldoutError.plan(distiller, bank, targets, SPACE)


def everything(distiller):
    """All that a step reads: the state, the modes of the students, and torch's generator."""
    modes = [part.training for student in distiller.pool.students for part in student.module.modules()]
    weights = [t.clone() for student in distiller.pool.students for t in student.module.state_dict().values()]
    return modes, [distiller.images.clone(), distiller.targets.clone(), *weights, torch.random.get_rng_state()]


def test_it_is_the_error_of_the_regression_through_the_oldest_student():
    distiller = build_distiller(max_age=50, ridge=1e-3)
    for _ in range(8):
        distiller.step()
    measured = plan(distiller)
    oldest = max(distiller.pool.students, key=lambda student: student.age)
    assert oldest.age > 0 and distiller.method.judge() is oldest.module
    with torch.no_grad():
        real = SPACE.normalise(measured.pixels.double() / 255)
        features = [pre_logits(oldest.module.eval(), images) for images in (distiller.images, real)]
        found = predict(features[0], distiller.targets, features[1], 1e-3)
    expected = (found - measured.targets).square().mean().item()
    record = measured.measure(distiller)
    assert record == {"stage": "heldout", "step": 8, "error": pytest.approx(expected), "images": len(measured.pixels)}
    # Images of a thousand go through in parts.
    many = replace(measured, pixels=measured.pixels.repeat(40, 1, 1, 1), targets=measured.targets.repeat(40, 1))
    assert len(many.pixels) > 64 and many.measure(distiller)["error"] == pytest.approx(expected)


@pytest.mark.parametrize("training", [True, False])
def test_measuring_changes_nothing(training):
    distiller = build_distiller()
    distiller.step()
    for student in distiller.pool.students:
        student.module.train(training)
    measured, (modes, tensors) = plan(distiller), everything(distiller)
    measured.measure(distiller)
    later, kept = everything(distiller)
    assert later == modes and all(map(torch.equal, tensors, kept))


@every_case
def test_every_method_and_parameterisation_has_an_error(accelerator, method, parameterisation):
    distiller = build(method, parameterisation, accelerator)
    list(distiller.warm_up())
    measured = plan(distiller)
    first, again = (measured.measure(distiller)["error"] for _ in range(2))
    assert first == again and 0 < first < 100
    contract_cases.run(distiller, 3)
    assert measured.measure(distiller)["error"] != first


@pytest.mark.parametrize("steps", [0, 1, 3, 100, 1400, 160_000])
def test_the_plan_costs_its_share_but_for_very_short_runs(steps):
    distiller = build_distiller(steps=steps, batch_size=64, inner_steps=2)
    measured = plan(distiller, 2000)
    assert {0, steps} <= measured.steps <= {*range(steps + 1)} and len(measured.steps) <= POINTS + 1
    passed = len(measured.steps) * (len(measured.pixels) + M)
    step = 64 + 9 * M
    assert passed <= max(SHARE * steps * step, 2 * (64 + M))
    if steps >= 1400:
        # It is used too.
        assert len(measured.steps) == POINTS + 1 and passed > 0.9 * min(SHARE * steps * step, 11 * 2000)


def test_few_held_out_images_are_all_taken_and_others_are_drawn_by_the_seed():
    bank, targets = heldout(9)
    measured = HeldoutError.plan(build_distiller(steps=10_000), bank, targets, SPACE)
    assert torch.equal(measured.pixels, bank.pixels) and torch.equal(measured.targets, targets)
    one, other = (plan(build_distiller(steps=300)) for _ in range(2))
    assert torch.equal(one.pixels, other.pixels) and len(one.pixels) < 300
    rows = [int((heldout()[0].pixels == image).flatten(1).all(1).nonzero()) for image in one.pixels]
    assert torch.equal(heldout()[1][rows], one.targets) and rows != list(range(len(rows)))


def test_an_error_that_cannot_be_had_is_none_and_the_run_goes_on(monkeypatch, tmp_path):
    distiller, run = start(tmp_path / "run")
    measured = plan(distiller)
    broken = replace(measured, targets=measured.targets * math.inf)
    assert broken.measure(distiller)["error"] is None

    def fail(*given):
        raise torch.linalg.LinAlgError("singular")

    monkeypatch.setattr("ssdd_hub.distill.heldout.Regression", fail)
    distil(distiller, run, SETTINGS, False, measured)
    errors = [record["error"] for record in run.log.read() if record["stage"] == "heldout"]
    assert errors and set(errors) == {None}


def log_of(distiller, run):
    distil(distiller, run, SETTINGS, False, replace(plan(distiller), steps=frozenset((0, 3, 8, 10))))
    return run.log.path.read_bytes()


def test_the_log_holds_the_start_and_the_points_and_all_else_is_as_without(tmp_path):
    distiller, run = start(tmp_path / "run")
    log_of(distiller, run)
    alone, other = start(tmp_path / "alone")
    distil(alone, other, SETTINGS, False)
    records = run.log.read()
    points = [record for record in records if record["stage"] == "heldout"]
    assert [record["step"] for record in points] == [0, 3, 8, 10] and all(record["error"] > 0 for record in points)
    assert [record for record in records if record["stage"] != "heldout"] == other.log.read()
    assert torch.equal(distiller.images, alone.images) and torch.equal(distiller.targets, alone.targets)


@pytest.mark.parametrize("stop", [0, 3, 5, 8, 9])
def test_an_interrupted_run_logs_the_bytes_of_the_unbroken_one(tmp_path, stop):
    whole = log_of(*start(tmp_path / "whole"))
    stopped, run = start(tmp_path / "run")
    stop_at(stopped, stop)
    with pytest.raises(KeyboardInterrupt):
        log_of(stopped, run)
    assert log_of(*start(tmp_path / "run")) == whole


def test_a_run_killed_before_its_first_checkpoint_measures_the_start_once(tmp_path):
    whole = log_of(*start(tmp_path / "whole"))
    _, run = start(tmp_path / "run")
    run.log.write([{"stage": "heldout", "step": 0, "error": 9.0, "images": 1}])
    assert log_of(*start(tmp_path / "run")) == whole


def test_another_process_measures_nothing(tmp_path):
    distiller, run = start(tmp_path / "run")
    run.is_main = run.log.enabled = False
    measured = plan(distiller)
    object.__setattr__(measured, "measure", None)
    distil(distiller, run, SETTINGS, False, measured)
    assert distiller.outer_step == 10


def test_a_random_network_judges_a_method_without_students(accelerator):
    distiller = build("mean_match", "pixels", accelerator)
    one, other = (distiller.method.judge().state_dict() for _ in range(2))
    assert all(map(torch.equal, one.values(), other.values()))

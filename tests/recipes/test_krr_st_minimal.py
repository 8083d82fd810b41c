"""The algorithm in one file, and the plain implementation with all settings, take the steps of the package."""

import re
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from reference.warm import Running

import krr_st_minimal as minimal
from ssdd_hub.distill.distiller import Distiller, DistillerSettings
from ssdd_hub.distill.engine.timing import PARTS, Stopwatch
from ssdd_hub.distill.krr import outer_loss
from ssdd_hub.distill.pool import PoolSettings, StudentPool
from ssdd_hub.errors import SettingsError
from ssdd_hub.models.convnet import ConvNet
from ssdd_hub.seeds import generator, seeded
from studies.plain import PlainDistiller

RECIPE = Path(minimal.__file__)
STEPS, M, BATCH, SEED = 20, 6, 12, 3


class Student(minimal.Student):
    """The same network with timm's interface, which the package requires."""

    def forward_features(self, images):
        return self.features(images)

    def forward_head(self, features, pre_logits=False):
        return features if pre_logits else self.head(features)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def real_batch(step):
    return random(BATCH, 1, 8, 8, seed=100 + step), random(BATCH, minimal.D, seed=200 + step)


FIRST = random(M, 1, 8, 8, seed=1), random(M, minimal.D, seed=2)


def build_package(pool, build=Student, first=FIRST, batch=real_batch, seed=SEED, **settings):
    """Returns our distiller in float64, and the settings of the outer problem."""
    settings = DistillerSettings(num_images=M, batch_size=BATCH, precision="float64", **settings)
    students = StudentPool(build, pool, seed, dtype=torch.float64)
    batches = lambda step, rank, world: batch(step)  # noqa: E731
    return Distiller(*first, students, batches, settings, Accelerator(cpu=True)), settings


def assert_close(left, right):
    torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-9)


def test_the_outer_loss_and_its_gradients_are_those_of_the_package():
    with seeded(SEED, "student"):
        student = Student().double().eval()
    images, targets = random(M, 1, 8, 8).requires_grad_(), random(M, minimal.D, seed=1).requires_grad_()
    real, real_targets = real_batch(0)
    ours = minimal.outer_loss(student, images, targets, real, real_targets)
    known = student.features(real).detach()
    theirs = outer_loss(student.features(images), targets, known, real_targets, minimal.RIDGE)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-9)
    for left, right in zip(*(torch.autograd.grad(loss, [images, targets]) for loss in (ours, theirs)), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-10)


def test_steps_are_those_of_the_distiller(monkeypatch):
    """Warm-up, the decay of the learning rate, and renewals of every slot, in float64 without any speed-up."""
    monkeypatch.setattr(minimal, "STEPS", STEPS)
    rate, momentum, decay = minimal.SGD.values()
    settings = {"lr_images": minimal.LR, "lr_targets": minimal.LR, "final_lr": 0.0, "ridge": minimal.RIDGE}
    pool = PoolSettings(2, 5, learning_rate=rate, momentum=momentum, weight_decay=decay)
    package, _ = build_package(pool, steps=STEPS, kernel_precision="float64", **settings)
    for _ in package.warm_up():
        pass
    generations = [-1, -1]

    def build(slot):
        generations[slot] += 1
        with seeded(SEED, "student", slot, generations[slot]):
            return Student().double()

    images, targets = (torch.nn.Parameter(part.clone()) for part in FIRST)
    adam, own = torch.optim.AdamW([images, targets], minimal.LR, weight_decay=0.0), minimal.Pool(build, 2, 5)
    for slot, age in enumerate(package.pool.first_ages()):
        for _ in range(age):
            own.train(slot, images, targets)
    for step in range(STEPS):
        slot = int(torch.randint(2, (), generator=generator(SEED, "draw", step)))
        loss = minimal.outer_step(step, adam, own, slot, *real_batch(step))
        found = package.step()
        assert found["student"] == slot and own.ages == package.pool.ages
        assert loss == pytest.approx(found["loss"].item(), rel=1e-9)
        assert_close(images, package.images)
        assert_close(targets, package.targets)
    assert generations == [student.generation for student in package.pool.students] and min(generations) >= 1


@pytest.mark.parametrize("steps", [150, pytest.param(600, marks=pytest.mark.slow)])
def test_it_is_short_needs_nothing_of_the_package_and_its_images_beat_random_ones(tmp_path, steps):
    source = RECIPE.read_text()
    assert len(source.splitlines()) <= 150 and "import ssdd_hub" not in source and "from ssdd_hub" not in source
    assert "\nSTEPS, LR = 600, " in source
    (tmp_path / RECIPE.name).write_text(source.replace("\nSTEPS, LR = 600, ", f"\nSTEPS, LR = {steps}, "))
    printed = Running(tmp_path / RECIPE.name).finish()
    errors = dict(re.findall(r"(random|distilled) images: ([\d.]+)", printed))
    assert float(errors["distilled"]) < 0.8 * float(errors["random"])
    assert len(re.findall(r"outer loss [\d.]+", printed)) == 2 + (steps - 1) // 100


# The plain implementation


def build_both(pool, seed=0, **settings):
    """Returns both with the same settings, on the same real batches; targets pass for pixels."""
    first = random(M, 3, 16, 16, seed=98), random(M, 5, seed=99)
    batch = lambda step: (random(BATCH, 3, 16, 16, seed=step), random(BATCH, 5, seed=300 + step))  # noqa: E731
    build, watch = (lambda: ConvNet((4, 6), "batch", 3, 16, 5)), Stopwatch()
    fast, settings = build_package(pool, build, first, batch, seed, **settings)
    return PlainDistiller(*first, build, batch, lambda seen: seen, settings, pool, seed, watch.part), fast, watch


def test_a_whole_run_is_that_of_the_fast_implementation():
    """Warm-up, renewals of every slot, several inner steps, decay to a final rate, rates and inner SGD of its own."""
    pool = PoolSettings(size=2, max_age=5, learning_rate=0.05, momentum=0.8, weight_decay=1e-2)
    settings = {"steps": 14, "lr_images": 1e-2, "lr_targets": 3e-3, "final_lr": 0.1, "inner_steps": 2, "ridge": 1e-5}
    plain, fast, _ = build_both(pool, seed=3, **settings)
    warm_up = [loss.item() for loss in plain.warm_up()]
    assert warm_up == pytest.approx([loss.item() for loss in fast.warm_up()], rel=1e-8)
    assert len(warm_up) == sum(plain.pool.ages) > 0 and plain.pool.ages == fast.pool.first_ages()
    for _ in range(settings["steps"]):
        ours, theirs = plain.step(), fast.step()
        assert (ours["student"], ours["age"]) == (theirs["student"], theirs["age"])
        for name in ("loss", "inner_loss"):
            assert ours[name].item() == pytest.approx(theirs[name].item(), rel=1e-8)
        assert_close(plain.images, fast.images)
        assert_close(plain.targets, fast.targets)
        assert plain.outer.param_groups[0]["lr"] == pytest.approx(theirs["lr"])
    assert plain.outer_step == fast.outer_step == settings["steps"]
    assert plain.pool.ages == fast.pool.ages and min(plain.generations) >= 2
    assert plain.generations == [student.generation for student in fast.pool.students]


def test_parts_of_both_are_counted_also_one_that_fails():
    plain, fast, watch = build_both(PoolSettings(size=2, warm_up=False), steps=10**9)
    plain.step(), fast.step()
    for counted in (watch, fast.watch):
        assert list(counted.seconds) == list(PARTS)
    # The plain one has a teacher to run, the fast one has not.
    assert all(watch.seconds.values())
    assert {part for part, seconds in fast.watch.seconds.items() if not seconds} == {"teacher"}
    watch.reset()
    assert watch.seconds == dict.fromkeys(PARTS, 0.0)
    with pytest.raises(KeyboardInterrupt), watch.part("data"):
        raise KeyboardInterrupt
    assert watch.seconds["data"] > 0


@pytest.mark.parametrize(
    ("pool", "settings", "told"),
    [
        ({"renewal": "never-train"}, {}, "pool.renewal must be train in the plain implementation, got 'never-tr"),
        ({"optimizer": "adam"}, {}, "pool.optimizer must be sgd"),
        ({}, {"optimizer": "lamb"}, "distiller.optimizer must be adamw"),
        ({}, {"set_batch": 3}, "distiller.set_batch must be left out"),
    ],
)
def test_what_has_no_plain_implementation_is_refused(pool, settings, told):
    with pytest.raises(SettingsError, match=told):
        build_both(PoolSettings(**pool), steps=1, **settings)

"""The algorithm in one file is that of the package: the same loss, the same steps; and it runs as it is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

import krr_st_minimal as minimal
from ssdd_hub.distill.distiller import Distiller, DistillerSettings
from ssdd_hub.distill.krr import outer_loss
from ssdd_hub.distill.pool import PoolSettings, StudentPool
from ssdd_hub.seeds import generator, seeded

RECIPE = Path(minimal.__file__)
STEPS, BATCH, SEED = 20, 12, 3


class Student(minimal.Student):
    """The same network with timm's interface, which the package asks for."""

    def forward_features(self, images):
        return self.features(images)

    def forward_head(self, features, pre_logits=False):
        return features if pre_logits else self.head(features)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def real_batch(step):
    return random(BATCH, 1, 8, 8, seed=100 + step), random(BATCH, minimal.D, seed=200 + step)


def test_the_outer_loss_and_its_gradients_are_those_of_the_package():
    with seeded(SEED, "student"):
        student = Student().double().eval()
    images, targets = random(6, 1, 8, 8).requires_grad_(), random(6, minimal.D, seed=1).requires_grad_()
    real, real_targets = real_batch(0)
    ours = minimal.outer_loss(student, images, targets, real, real_targets)
    theirs = outer_loss(
        student.features(images), targets, student.features(real).detach(), real_targets, minimal.RIDGE
    )
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-9)
    for left, right in zip(*(torch.autograd.grad(loss, [images, targets]) for loss in (ours, theirs)), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-10)


def test_steps_are_those_of_the_distiller(monkeypatch):
    """Warm-up, the decay of the learning rate, and renewals of every slot, in float64 without any speed-up."""
    monkeypatch.setattr(minimal, "MAX_AGE", 5)
    monkeypatch.setattr(minimal, "POOL", 2)
    monkeypatch.setattr(minimal, "STEPS", STEPS)
    images, targets = random(6, 1, 8, 8, seed=1), random(6, minimal.D, seed=2)
    pool = PoolSettings(2, 5, learning_rate=minimal.INNER_LR, momentum=minimal.MOMENTUM, weight_decay=minimal.DECAY)
    settings = DistillerSettings(
        num_images=6,
        batch_size=BATCH,
        steps=STEPS,
        lr_images=minimal.LR,
        lr_targets=minimal.LR,
        final_lr=0.0,
        ridge=minimal.RIDGE,
        precision="float64",
        kernel_precision="float64",
    )
    students = StudentPool(Student, pool, SEED, dtype=torch.float64)
    batches = lambda step, rank, world: real_batch(step)  # noqa: E731
    package = Distiller(images, targets, students, batches, settings, Accelerator(cpu=True))
    for _ in package.warm_up():
        pass

    generations, slot = [], 0

    def build():
        """Returns the student that the package draws for this slot, whose turn it is."""
        if len(generations) < 2:
            place = len(generations)
            generations.append(0)
        else:
            place = slot
            generations[place] += 1
        with seeded(SEED, "student", place, generations[place]):
            return Student().double()

    images, targets = torch.nn.Parameter(images), torch.nn.Parameter(targets)
    adam, own = torch.optim.AdamW([images, targets], minimal.LR, weight_decay=0.0), minimal.Pool(build)
    for slot, age in enumerate(students.first_ages()):
        for _ in range(age):
            own.train(slot, images, targets)
    for step in range(STEPS):
        slot = int(torch.randint(2, (), generator=generator(SEED, "draw", step)))
        loss = minimal.outer_step(step, adam, own, slot, *real_batch(step))
        found = package.step()
        assert found["student"] == slot and own.ages == students.ages
        assert loss == pytest.approx(found["loss"].item(), rel=1e-9)
        torch.testing.assert_close(images, package.images, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(targets, package.targets, rtol=1e-9, atol=1e-9)
    assert generations == [student.generation for student in students.students] and min(generations) >= 1


def test_it_is_short_needs_nothing_of_the_package_and_its_images_beat_random_ones():
    source = RECIPE.read_text()
    assert len(source.splitlines()) <= 150 and "import ssdd_hub" not in source and "from ssdd_hub" not in source
    done = subprocess.run([sys.executable, str(RECIPE)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    errors = dict(re.findall(r"(random|distilled) images: ([\d.]+)", done.stdout))
    assert float(errors["distilled"]) < 0.8 * float(errors["random"])
    assert len(re.findall(r"outer loss [\d.]+", done.stdout)) == 7

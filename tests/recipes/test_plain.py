"""The plain implementation is a second witness of the fast one, and runs at the size that is timed."""

import pytest
import torch
from accelerate import Accelerator

from ssdd_hub.distill.distiller import Distiller, DistillerSettings
from ssdd_hub.distill.engine.timing import PARTS, Stopwatch
from ssdd_hub.distill.pool import PoolSettings, StudentPool
from ssdd_hub.errors import SettingsError
from ssdd_hub.models.convnet import ConvNet
from studies.plain import PlainDistiller

M, B, D = 6, 8, 5


def real_batch(step):
    source = torch.Generator().manual_seed(step)
    return tuple(torch.randn(*shape, generator=source).double() for shape in ((B, 3, 16, 16), (B, D)))


def build_student():
    return ConvNet((4, 6), "batch", 3, 16, D)


def build_both(pool, part=None, seed=0, **settings):
    """Returns both implementations with the same settings, on the same real batches; targets pass for pixels."""
    source = torch.Generator().manual_seed(99)
    images, targets = (torch.randn(*shape, generator=source).double() for shape in ((M, 3, 16, 16), (M, D)))
    settings = DistillerSettings(num_images=M, batch_size=B, precision="float64", **settings)
    timed = {} if part is None else {"part": part}
    plain = PlainDistiller(
        images, targets, build_student, real_batch, lambda seen: seen, settings, pool, seed, **timed
    )
    students = StudentPool(build_student, pool, seed, dtype=torch.float64)
    batches = lambda step, rank, world: real_batch(step)  # noqa: E731
    return plain, Distiller(images, targets, students, batches, settings, Accelerator(cpu=True))


def assert_close(left, right):
    torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-12)


def test_a_whole_run_is_that_of_the_fast_implementation():
    """Warm-up, renewals of every slot, several inner steps, decay to a final rate, rates and inner SGD of its own."""
    pool = PoolSettings(size=2, max_age=5, learning_rate=0.05, momentum=0.8, weight_decay=1e-2)
    settings = {"steps": 14, "lr_images": 1e-2, "lr_targets": 3e-3, "final_lr": 0.1, "inner_steps": 2, "ridge": 1e-5}
    plain, fast = build_both(pool, seed=3, **settings)
    warm_up = [loss.item() for loss in plain.warm_up()]
    assert warm_up == pytest.approx([loss.item() for loss in fast.warm_up()], rel=1e-8)
    assert len(warm_up) == sum(plain.ages) > 0 and plain.ages == fast.pool.first_ages()
    for _ in range(settings["steps"]):
        ours, theirs = plain.step(), fast.step()
        assert (ours["student"], ours["age"]) == (theirs["student"], theirs["age"])
        for name in ("loss", "inner_loss"):
            assert ours[name].item() == pytest.approx(theirs[name].item(), rel=1e-8)
        assert_close(plain.images, fast.images)
        assert_close(plain.targets, fast.targets)
        assert plain.outer.param_groups[0]["lr"] == pytest.approx(theirs["lr"])
    assert plain.outer_step == fast.outer_step == settings["steps"]
    assert plain.ages == fast.pool.ages and min(plain.generations) >= 2
    assert plain.generations == [student.generation for student in fast.pool.students]


def test_parts_of_both_are_counted():
    watch = Stopwatch()
    plain, fast = build_both(PoolSettings(size=2, warm_up=False), part=watch.part, steps=10**9)
    plain.step(), fast.step()
    for counted in (watch, fast.watch):
        assert list(counted.seconds) == list(PARTS)
    assert all(watch.seconds.values())
    # The one has a teacher to run, the other has not.
    assert {part for part, seconds in fast.watch.seconds.items() if not seconds} == {"teacher"}


def test_a_renewal_as_in_the_released_code_is_refused():
    with pytest.raises(SettingsError, match="pool.renewal must be train in the plain implementation, got 'never-tr"):
        build_both(PoolSettings(renewal="never-train"), steps=1)


def test_a_stopwatch_counts_a_part_that_fails_and_starts_anew():
    watch = Stopwatch(torch.device("cpu"))
    with pytest.raises(KeyboardInterrupt), watch.part("data"):
        raise KeyboardInterrupt
    assert watch.seconds["data"] > 0
    watch.reset()
    assert watch.seconds == dict.fromkeys(PARTS, 0.0)

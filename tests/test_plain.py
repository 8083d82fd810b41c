"""The plain implementation is a second witness of the fast one, and runs at the size that is timed."""

import copy

import pytest
import torch
from accelerate import Accelerator

from ssdd_hub.distiller import Distiller, DistillerSettings
from ssdd_hub.plain import PlainDistiller
from ssdd_hub.pool import PoolSettings, StudentPool
from ssdd_hub.stopwatch import PARTS, Stopwatch
from ssdd_hub.students import ConvNet


def test_steps_are_those_of_the_fast_implementation():
    source = torch.Generator().manual_seed(0)
    images, targets = (torch.randn(*shape, generator=source).double() for shape in ((6, 3, 16, 16), (6, 5)))
    batches = [
        tuple(torch.randn(*shape, generator=source).double() for shape in ((8, 3, 16, 16), (8, 5))) for _ in range(4)
    ]
    pool = StudentPool(
        lambda: ConvNet((4, 6), "batch", 3, 16, 5), PoolSettings(size=2, warm_up=False), 0, dtype=torch.float64
    )
    settings = DistillerSettings(
        num_images=6, batch_size=8, precision="float64", steps=10**9, lr_images=1e-2, lr_targets=1e-2
    )
    watch = Stopwatch()
    students = [copy.deepcopy(student.module) for student in pool.students]
    plain = PlainDistiller(images, targets, students, lr=1e-2, part=watch.part)
    fast = Distiller(images, targets, pool, lambda step, rank, world: batches[step], settings, Accelerator(cpu=True))
    for step, (real_images, real_targets) in enumerate(batches):
        loss = plain.step(pool.draw(step), real_images, lambda _, targets=real_targets: targets)
        assert loss.item() == pytest.approx(fast.step()["loss"].item(), rel=1e-7)
    torch.testing.assert_close(plain.images, fast.images, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(plain.targets, fast.targets, rtol=1e-6, atol=1e-8)
    for counted in (watch, fast.watch):
        assert list(counted.seconds) == list(PARTS)
    # The one has no data to prepare, the other no teacher to run.
    assert {part for part, seconds in watch.seconds.items() if not seconds} == {"data"}
    assert {part for part, seconds in fast.watch.seconds.items() if not seconds} == {"teacher"}


def test_a_stopwatch_counts_a_part_that_fails_and_starts_anew():
    watch = Stopwatch(torch.device("cpu"))
    with pytest.raises(KeyboardInterrupt), watch.part("data"):
        raise KeyboardInterrupt
    assert watch.seconds["data"] > 0
    watch.reset()
    assert watch.seconds == dict.fromkeys(PARTS, 0.0)

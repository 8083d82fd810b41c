import os
import random
import signal

import numpy as np
import pytest
import torch

from ssdd_hub.errors import InputError
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.teachers.objectives.registry import build_objective
from ssdd_hub.teachers.view_batches import DeviceViewBatches, ViewBatches, leave_cores_to

DIGITS = {"min_scale": 0.4, "hf_prob": 0.0, "random_gray_scale": 0.0, "cj_strength": 0.5, "solarization_prob": 0.0}


@pytest.fixture
def pixels(digits):
    return digits[0].pixels[:40]


@pytest.fixture
def batches(pixels, small_backbone):
    objective = build_objective("barlow_twins", small_backbone(), in_chans=1, image_size=16, hidden_dim=8)
    return ViewBatches(pixels, objective.build_views(16, PixelSpace.raw(1), **DIGITS), batch_size=8, seed=3)


def equal_views(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_batch_holds_one_tensor_of_each_view(batches):
    first, second = batches[0]
    assert first.shape == second.shape == (8, 1, 16, 16) and not torch.equal(first, second)


def test_the_views_of_a_step_do_not_depend_on_the_worker_that_makes_them(batches):
    steps = range(3, 8)
    alone = [batches[step] for step in steps]
    for workers in (0, 2):
        assert all(map(equal_views, alone, batches.load(steps, workers)))
    assert not torch.equal(alone[0][0], alone[1][0])


def test_a_worker_that_the_system_ends_is_told_in_words_and_an_error_of_the_views_stays(pixels):
    def killed(image):
        os.kill(os.getpid(), signal.SIGKILL)

    def broken(image):
        raise RuntimeError("no view")

    with pytest.raises(InputError, match="the processes that make views cannot work .*--teacher-training.workers 0"):
        list(ViewBatches(pixels, killed, 4, seed=3).load(range(2), 1))
    with pytest.raises(RuntimeError, match="no view"):
        list(ViewBatches(pixels, broken, 4, seed=3).load(range(2), 1))


@pytest.mark.skipif(os.name != "posix", reason="lowers a limit that others lack")
# Of torch's own clean-up.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_workers_that_the_system_does_not_start_are_told_in_words(batches):
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    last = os.dup(0)
    os.close(last)
    resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1, before[1]))
    try:
        with pytest.raises(InputError, match=r"\(.*Too many open files\).*pass --teacher-training.workers 0"):
            list(batches.load(range(2), 2))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_whichever_global_generator_a_view_draws_from_depends_on_seed_and_step(pixels):
    def views(image):
        return [torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])]

    first, again = ViewBatches(pixels, views, 4, seed=3), ViewBatches(pixels, views, 4, seed=3)
    again[1]
    assert torch.equal(first[0][0], again[0][0])
    for other in (first[1][0], ViewBatches(pixels, views, 4, seed=4)[0][0], first[0][0].roll(1, 0)):
        assert not (first[0][0] == other).any()


def global_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_making_views_leaves_the_global_generators_as_they_were_also_after_an_error(batches):
    def broken(image):
        random.random(), np.random.rand(), torch.rand(1)
        raise RuntimeError("no view")

    before = global_states()
    batches[5]
    assert global_states() == before
    with pytest.raises(RuntimeError, match="no view"):
        ViewBatches(batches.pixels, broken, 8, 3)[0]
    assert global_states() == before


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_reaches_its_view_as_it_is(channels):
    pixels = torch.randint(0, 256, (5, channels, 8, 8), dtype=torch.uint8)

    def views(image):
        array = torch.from_numpy(np.array(image))
        return [array.reshape(8, 8, channels).permute(2, 0, 1)]

    (batch,) = ViewBatches(pixels, views, batch_size=5, seed=0)[0]
    assert sorted(map(str, batch.tolist())) == sorted(map(str, pixels.tolist()))


@pytest.mark.parametrize("world", [2, 4])
def test_the_parts_of_several_processes_make_up_the_batch_of_one(batches, world):
    parts = [ViewBatches(batches.pixels, batches.views, 8, 3, rank, world)[5] for rank in range(world)]
    assert equal_views(batches[5], [torch.cat(list(same)) for same in zip(*parts, strict=True)])


@pytest.fixture
def device_batches(batches):
    pytest.importorskip("kornia")
    return DeviceViewBatches(batches.pixels, batches.views, 8, 3)


def test_the_device_path_has_the_images_and_the_shapes_of_the_other(batches, device_batches):
    assert [view.shape for view in device_batches[0]] == [view.shape for view in batches[0]]
    assert [view.dtype for view in device_batches[0]] == [torch.float32] * 2
    assert torch.equal(batches.draw(7), device_batches.draw(7))


def test_views_of_the_device_path_are_a_function_of_seed_step_and_process(batches, device_batches):
    torch.manual_seed(1)
    first = device_batches[4]
    torch.manual_seed(2)
    assert all(map(equal_views, [first], device_batches.load(range(4, 5), workers=2)))
    assert not torch.equal(first[0], device_batches[5][0])
    halves = [DeviceViewBatches(batches.pixels, batches.views, 8, 3, rank, 2)[4] for rank in (0, 1)]
    assert halves[0][0].shape == (4, 1, 16, 16) and not torch.equal(halves[0][0], halves[1][0])


@pytest.mark.parametrize(("workers", "left"), [(0, 3), (1, 2), (2, 1), (9, 1)])
def test_torch_runs_on_the_cores_that_the_workers_leave(workers, left):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with leave_cores_to(workers):
            assert torch.get_num_threads() == left
        assert torch.get_num_threads() == 3
        with pytest.raises(RuntimeError), leave_cores_to(workers):
            raise RuntimeError
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)

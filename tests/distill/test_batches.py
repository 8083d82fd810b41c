import threading
from collections import Counter
from dataclasses import replace

import pytest
import torch

from ssdd_hub.data.augment import crop_flip
from ssdd_hub.distill.batches import ReadAhead, build_batches
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.targets.bank import FeatureBank
from ssdd_hub.targets.cache import FeatureCache, fixed_views
from ssdd_hub.targets.targets import Targets
from ssdd_hub.targets.transform import TargetTransform

SPACE = PixelSpace((0.2,), (0.4,))
VIEWS = 3


@pytest.fixture
def pixels(digits):
    return digits[0].pixels[:10]


@pytest.fixture
def build(digits, small_teacher, accelerator, tmp_path):
    """Builds batches of a kind: `plain`, `views` or `augmented`."""

    def build(kind, images=10, batch_size=7, seed=3, dtype=torch.float32, on_disk=False):
        source = replace(digits[0].subset(range(images)), on_disk=on_disk)
        cache = FeatureCache(small_teacher(dtype=dtype), accelerator, tmp_path / str(dtype), shard_size=4)
        features = cache.features(source)
        targets = Targets(features, TargetTransform.fit("standardise", features), dtype)
        options = {"augment": kind != "plain", "views": 0 if kind == "augmented" else VIEWS}
        return build_batches(source, cache, targets, SPACE, batch_size=batch_size, seed=seed, **options)

    return build


KINDS = pytest.mark.parametrize("kind", ["plain", "views", "augmented"])


def teachers_targets(small_teacher, pixels, images):
    """The teacher's targets of images in `SPACE`, transformed as `build` does."""
    teacher = small_teacher(dtype=images.dtype)
    transform = TargetTransform.fit("standardise", teacher(pixels.to(images.dtype) / 255))
    return transform(teacher(SPACE.denormalise(images)))


def which(images, pixels):
    """The index of each image of a batch among the pixels that it was made of."""
    found = SPACE.denormalise(images)[:, None] * 255 - pixels.to(images.dtype)[None]
    distance, index = found.abs().amax((2, 3, 4)).min(1)
    assert distance.max() < 1e-3
    return index


@KINDS
def test_a_batch_is_a_function_of_seed_and_step(build, kind):
    first, again, state = build(kind), build(kind), torch.manual_seed(9).get_state()
    again(0)
    for step in (4, 0):
        for ours, theirs in zip(first(step), again(step), strict=True):
            assert torch.equal(ours, theirs)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first(0)[0], first(1)[0])
    assert not torch.equal(first(0)[0], build(kind, seed=4)(0)[0])


@KINDS
@pytest.mark.parametrize("batch_size", [7, 12, 3])
def test_the_slices_of_three_processes_make_the_batch_of_one(build, kind, batch_size):
    batches = build(kind, batch_size=batch_size)
    images, targets = batches(2)
    assert images.shape == (batch_size, 1, 16, 16) and targets.shape == (batch_size, 24)
    slices = [batches(2, rank, 3) for rank in range(3)]
    assert torch.equal(torch.cat([part[0] for part in slices]), images)
    torch.testing.assert_close(torch.cat([part[1] for part in slices]), targets, rtol=1e-5, atol=1e-5)
    sizes = [len(part[0]) for part in slices]
    assert max(sizes) - min(sizes) <= 1


@KINDS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_the_target_of_each_image_is_the_teachers_of_the_very_same_pixels(
    build, kind, pixels, small_teacher, dtype, tolerance
):
    batches = build(kind, batch_size=13, dtype=dtype)
    for step in range(5):
        images, targets = batches(step)
        assert images.dtype == targets.dtype == dtype
        expected = teachers_targets(small_teacher, pixels, images)
        torch.testing.assert_close(targets, expected, rtol=tolerance, atol=tolerance)
    # Nor is it a target of any other image.
    others = teachers_targets(small_teacher, pixels, images.roll(1, 0))
    assert (targets - others).abs().mean() > 0.1


def test_a_batch_larger_than_the_data_repeats_images_evenly(build, pixels):
    images, targets = build("plain", batch_size=25)(0)
    drawn = which(images, pixels)
    assert set(Counter(drawn.tolist()).values()) == {2, 3}
    for index in range(10):
        same = targets[drawn == index]
        assert torch.equal(same, same[:1].expand_as(same))


@KINDS
def test_one_image_is_enough(build, kind):
    images, targets = build(kind, images=1, batch_size=4)(0)
    assert images.shape == (4, 1, 16, 16) and targets.isfinite().all()


def test_all_fixed_views_are_drawn_about_equally_often(build, pixels):
    batches, seen = build("views", batch_size=20), Counter()
    assert batches.crops.dtype == torch.uint8
    crops = torch.stack([crop_flip(pixels, fixed_views(range(10), view, 3)) for view in range(VIEWS)])
    for step in range(15):
        images, _ = batches(step)
        seen.update((which(images, crops.flatten(0, 1)) // 10).tolist())
    # 300 draws of 3 views: 100 of each, with a std of 8.
    assert seen.keys() == set(range(VIEWS)) and all(70 <= count <= 130 for count in seen.values())


def test_fresh_views_of_an_image_differ_from_step_to_step(build):
    batches = build("augmented", images=1, batch_size=8)
    images = torch.cat([batches(step)[0] for step in range(4)])
    assert len(images.flatten(1).unique(dim=0)) > 25


def test_rows_of_a_batch_are_those_of_its_images(build, pixels):
    batches = build("plain")
    for step in (0, 3):
        assert torch.equal(which(batches(step)[0], pixels), batches.rows(step))
        assert torch.equal(which(batches(step, 1, 2)[0], pixels), batches.rows(step)[3:])


@KINDS
def test_rows_on_the_disk_are_read_by_a_thread_one_step_ahead_and_batches_are_the_same(build, kind, monkeypatch):
    read, features = [], FeatureBank.__getitem__
    from_disk, in_memory = build(kind, on_disk=True), build(kind)

    def noted(bank, rows):
        read.append((threading.current_thread().name.partition("_")[0], sorted(rows.tolist())))
        return features(bank, rows)

    monkeypatch.setattr(FeatureBank, "__getitem__", noted)
    from_disk.read_ahead(0, 0, 2)
    from_disk.ahead.wait()
    expected = [rows for _, rows in read]
    assert [name for name, _ in read] == ["read-ahead"] * len(read)
    read.clear()
    for step in (0, 1, 2):
        ours = from_disk(step, 0, 2)
        from_disk.ahead.wait()
        asked, ahead = ([rows for thread, rows in read if thread == name] for name in ("MainThread", "read-ahead"))
        # Each step asks for what the thread has read during the one before.
        assert expected == asked or kind == "augmented"
        for one, other in zip(ours, in_memory(step, 0, 2), strict=True):
            assert torch.equal(one, other)
        expected = ahead
        read.clear()
    assert in_memory.ahead is None and bool(expected) == (kind != "augmented")


def test_a_disk_that_is_slower_than_the_steps_is_not_asked_for_more_and_more():
    ahead, done, gate = ReadAhead(), [], threading.Event()
    for number in range(2 * ReadAhead.MOST):
        ahead(lambda number=number: gate.wait(600) and done.append(number))
    gate.set()
    ahead.wait()
    assert done == list(range(ReadAhead.MOST))
    ahead(lambda: 1 / 0)
    ahead.wait()

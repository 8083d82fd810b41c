import pytest
import torch

from ssdd_hub.distill.engine import memory
from ssdd_hub.distill.engine.memory import CPU_PART, MicroBatches, kept_bytes, plan_micro_batches

IMAGES = torch.zeros(1000, 1, 4, 4)
IMAGE_BYTES = 64


def twice_exp(images):
    """Keeps two results of the size of its input."""
    return images.exp().exp()


def square(tensor):
    return tensor * tensor


def test_bytes_that_autograd_keeps_are_counted_once():
    assert kept_bytes(twice_exp, IMAGES[:3]) == 2 * 3 * IMAGE_BYTES
    # The exponential keeps its result, which is both factors of the square.
    assert kept_bytes(lambda images: square(images.exp()), IMAGES[:1]) == IMAGE_BYTES
    assert kept_bytes(lambda images: images + 1, IMAGES[:3]) == 0


@pytest.mark.parametrize(
    ("size", "budget", "planned"),
    [
        (None, 2 * 1000 * IMAGE_BYTES, MicroBatches(CPU_PART, recompute=False)),
        (None, 2 * 1000 * IMAGE_BYTES - 1, MicroBatches(CPU_PART, recompute=True)),
        (7, 2 * 1000 * IMAGE_BYTES, MicroBatches(7, recompute=False)),
        (7, 20 * 2 * IMAGE_BYTES, MicroBatches(7, recompute=True)),
        (None, 20 * 2 * IMAGE_BYTES, MicroBatches(10, recompute=True)),
        (7, 1, MicroBatches(1, recompute=True)),
    ],
)
def test_activations_are_kept_as_far_as_the_budget_goes(size, budget, planned):
    assert plan_micro_batches(twice_exp, IMAGES, size, budget) == planned


def test_weights_do_not_count_for_each_image():
    weight = torch.zeros(16, 5, requires_grad=True)
    plan = plan_micro_batches(lambda images: images.flatten(1) @ weight, IMAGES, None, 1000 * IMAGE_BYTES)
    assert plan == MicroBatches(CPU_PART, recompute=False)


@pytest.mark.parametrize(("free", "recompute"), [(5 * 1000 * IMAGE_BYTES, False), (3 * 1000 * IMAGE_BYTES, True)])
def test_without_a_budget_half_of_the_free_memory_is_one(monkeypatch, free, recompute):
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    assert plan_micro_batches(twice_exp, IMAGES).recompute is recompute


def test_the_machine_tells_what_is_free():
    assert 2**20 < memory.free_memory(torch.device("cpu")) < 2**50


@pytest.mark.parametrize(("size", "sizes"), [(1000, [1000]), (999, [500, 500]), (300, [250] * 4), (1, [1] * 1000)])
def test_parts_are_of_two_sizes_at_most_and_keep_the_order(size, sizes):
    images = torch.arange(1000)
    parts = MicroBatches(size, recompute=False).split(images)
    assert [len(part) for part in parts] == sizes and torch.equal(torch.cat(parts), images)
    assert len({len(part) for part in MicroBatches(size, recompute=False).split(torch.arange(997))}) <= 2


def test_parts_shrink_until_they_are_one_image_that_is_recomputed():
    parts, seen = MicroBatches(5, recompute=False), []
    while parts is not None:
        seen.append((parts.size, parts.recompute))
        parts = parts.smaller()
    assert seen == [(5, False), (5, True), (3, True), (2, True), (1, True)]


def test_a_gpu_takes_all_images_at_once_real_ones_too(monkeypatch):
    monkeypatch.setattr(memory, "kept_bytes", lambda forward, images: len(images) * IMAGE_BYTES)
    images = torch.empty(10, 1, 4, 4, device="meta")
    assert plan_micro_batches(twice_exp, images, budget=10 * IMAGE_BYTES, real=24) == MicroBatches(24, recompute=False)
    assert plan_micro_batches(twice_exp, images, budget=10 * IMAGE_BYTES, real=4) == MicroBatches(10, recompute=False)
    assert plan_micro_batches(twice_exp, images, budget=6 * IMAGE_BYTES, real=24) == MicroBatches(3, recompute=True)

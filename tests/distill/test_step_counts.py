"""Work that must not creep into a step: kernel launches and waits for the device, counted, since times vary.

Floating-point operations are asserted by formula in test_benchmark.py, waits of a real GPU in test_gpu.py.
"""

from collections import Counter

import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from ssdd_hub.distill.batches import CachedBatches
from ssdd_hub.distill.distiller import Distiller, DistillerSettings
from ssdd_hub.distill.pool import PoolSettings, StudentPool
from ssdd_hub.models.convnet import ConvNet
from ssdd_hub.pixel_space import PixelSpace

WAITS = {"aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.masked_select", "aten.unique_dim"}
SIDE = 16


class Launches(TorchDispatchMode):
    """Counts what is computed; views compute nothing."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        view = any(result.alias_info and not result.alias_info.is_write for result in func._schema.returns)
        if not view:
            self.counts[str(func.overloadpacket)] += 1
        return func(*args, **(kwargs or {}))


def cached_distiller(accelerator, settings, pool, widths, count, width):
    """A distiller of `count` random images and targets of a width, on the accelerator's device."""
    source, device = torch.Generator().manual_seed(0), accelerator.device
    pixels = torch.randint(256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=source)
    pool = StudentPool(lambda: ConvNet(widths, "batch", 3, SIDE, width), pool, 0, device=device)
    real = {"pixels": pixels, "targets": torch.randn(count, width, generator=source), "device": device}
    space, size = PixelSpace((0.5,) * 3, (0.25,) * 3), settings.num_images
    batches = CachedBatches(**real, pixel_space=space, batch_size=settings.batch_size, seed=0)
    images, targets = (torch.randn(size, *shape, generator=source) for shape in ((3, SIDE, SIDE), (width,)))
    return Distiller(images, targets, pool, batches, settings, accelerator)


def build(blocks=2, **settings):
    settings = DistillerSettings(num_images=6, batch_size=10, steps=9, **settings)
    pool = PoolSettings(size=1, warm_up=False)
    return cached_distiller(Accelerator(cpu=True), settings, pool, (4, 8, 8)[:blocks], 40, 5)


def count(**settings):
    distiller = build(**settings)
    distiller.step()
    with Launches() as launches:
        distiller.step()
    return launches.counts


def test_nothing_in_a_step_waits_for_the_device():
    counts = count(inner_steps=2)
    # AdamW's two counters and the drawn slot are on the CPU; its fused form on a GPU reads no counters.
    assert {name: number for name, number in counts.items() if name in WAITS} == {"aten._local_scalar_dense": 3}


def test_the_outer_gradient_launches_what_its_formula_needs():
    """Convolutions: of real and of distilled images forward, of distilled ones backward, whatever else changes."""
    distiller = build()
    distiller.step()
    real, pairs = distiller.method.problem.batch(1), distiller.parameterisation().detached()
    with Launches() as launches:
        distiller.engine.krr_gradients(distiller.pool.student(0), pairs, real, ridge=1e-6)
    counts = launches.counts
    assert counts["aten.convolution"] == 2 * 2 and counts["aten.convolution_backward"] == 2
    # One factorisation serves the solution and its gradient.
    assert counts["aten._linalg_solve_ex"] == 1 and counts["aten.linalg_lu_solve"] == 1
    # Both kernels, the prediction; backward three of kernels, two of the prediction, one of the solution.
    assert counts["aten.mm"] == 3 + 3 + 2 + 1
    assert counts["aten.native_batch_norm"] == counts["aten.cudnn_batch_norm"] == 0


@pytest.mark.parametrize(("settings", "most"), [({}, 190), ({"blocks": 3}, 232), ({"inner_steps": 2}, 263)])
def test_a_step_launches_no_more_than_it_did(settings, most):
    assert 0.5 * most < sum(count(**settings).values()) <= most

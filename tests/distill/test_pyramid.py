"""Pyramids against sums written out, how they start and grow, and what is stored of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from reference.contract_cases import M, build, make_pairs, run
from torch.nn import functional

from ssdd_hub.distill.distiller import Distiller
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations import build_parameterisation
from ssdd_hub.distill.parameterisations.pixels import Pixels
from ssdd_hub.distill.parameterisations.pyramid import _COLOURS
from ssdd_hub.errors import InputError
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.runs.checkpoints import load_tree, save_tree
from ssdd_hub.sets.storage import StorageSettings, pack

SPACE = PixelSpace((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
ENDS = {"black": [-2.5, -1.6, -1.0], "white": [2.5, 2.4, 7 / 3]}


def make_photos(count=3, height=12, width=12, channels=3):
    """Returns pairs of images of some pixels of exactly 0 and 1."""
    drawn = torch.Generator().manual_seed(7)
    pixels = (1.4 * torch.rand(count, channels, height, width, generator=drawn, dtype=torch.float64) - 0.2).clamp(0, 1)
    images = SPACE.normalise(pixels) if channels == 3 else pixels
    return Pairs(images, torch.randn(count, 4, generator=drawn, dtype=torch.float64))


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 12, 12), (1, 8, 8), (3, 5, 9)])
def test_images_are_sums_of_enlarged_layers_in_opponent_colours(channels, height, width):
    made = build_parameterisation("pyramid", make_photos(2, height, width, channels), {"every": 0})
    with torch.no_grad():
        made.layers.normal_(generator=torch.Generator().manual_seed(1))
    total, first, side = 0, 0, 1
    while True:
        size = (min(side, height), min(side, width))
        layer = made.layers[:, :, first : first + size[0] * size[1]].unflatten(2, size)
        total = total + functional.interpolate(layer, (height, width), mode="bilinear", align_corners=False)
        first += size[0] * size[1]
        if size == (height, width):
            break
        side *= 2
    assert first == made.layers.shape[2]
    colours = np.array(_COLOURS if channels == 3 else [[1.0]])
    expected = np.zeros(total.shape)
    for shown in range(channels):
        for part in range(channels):
            expected[:, shown] += colours[shown, part] * total[:, part].detach().numpy()
    np.testing.assert_allclose(made().images.detach(), 1 / (1 + np.exp(-2 * expected)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_all_layers_start_as_the_images_and_one_as_their_mean_colours(channels):
    pairs, ends = make_photos(channels=channels), ENDS if channels == 3 else {}
    whole = build_parameterisation("pyramid", pairs, {"every": 0}, ends)
    # A quarter of a level of 8 bits.
    spread = max(SPACE.std) / min(SPACE.std) ** 2
    torch.testing.assert_close(whole().images.detach(), pairs.images, rtol=0, atol=spread / 1020)
    pixels = SPACE.denormalise(pairs.images) if channels == 3 else pairs.images
    # A colour is exact where all its channels are.
    inside = ((pixels > 0.01) & (pixels < 0.99)).all(1, keepdim=True).expand_as(pixels)
    gap = (whole().images.detach() - pairs.images).abs()
    assert gap[inside].max() < 1e-9 and torch.equal(whole().targets, pairs.targets)
    first = build_parameterisation("pyramid", pairs, {"every": 4}, ends)().images.detach()
    assert (first - first[:, :, :1, :1]).abs().max() < 1e-12
    assert first[:, 0, 0, 0].std() > 0


def test_a_pyramid_grows_by_noise_and_keeps_its_size():
    made = build_parameterisation("pyramid", make_photos(), {"every": 4, "seed": 5})
    counts = []
    for step in range(21):
        before, count = made.layers.detach().clone(), int(made.count)
        grown = made.grow(step)
        counts.append(int(made.count))
        assert grown == (step in (4, 8, 12, 16)) == (counts[-1] > count)
        if grown:
            old, added = (
                [part.split([4**n if n < 4 else 144 for n in range(5)], 2)[n] for n in numbers]
                for part, numbers in ((made.layers, range(count)), (made.layers, [count]))
            )
            for was, now in zip(before.split([4**n if n < 4 else 144 for n in range(5)], 2), old, strict=False):
                torch.testing.assert_close(now.detach(), was * count / (count + 1), rtol=1e-12, atol=0)
            assert added[0].std().item() == pytest.approx(1 / (count + 1), rel=0.5)
    assert counts[-1] == 5 and counts[3] == 1
    again = build_parameterisation("pyramid", make_photos(), {"every": 4, "seed": 5})
    for step in (4, 8, 12, 16):
        again.grow(step)
    assert torch.equal(again.layers, made.layers)


@pytest.mark.parametrize("stop", [3, 5])
def test_a_run_resumes_exactly_across_a_layer_and_optimises_it_anew(accelerator, tmp_path, stop):
    unbroken, stopped, resumed = (build("mean_match", "pyramid", accelerator) for _ in range(3))
    losses = run(unbroken, 7)
    run(stopped, stop)
    (state,) = (each for each in stopped.optimizer.state.values() if each["exp_avg"].ndim == 3)
    assert state["step"].item() == (3 if stop == 3 else 2)
    save_tree(tmp_path / "state.safetensors", stopped.state_dict())
    resumed.load_state_dict(load_tree(tmp_path / "state.safetensors"))
    assert torch.equal(run(resumed, 7 - stop), losses[stop:])
    assert torch.equal(resumed.images, unbroken.images) and int(resumed.parameterisation.count) == 3


@pytest.mark.parametrize("every", [3, 4])
def test_too_few_steps_for_all_layers_are_refused(every):
    made = build_parameterisation("pyramid", make_photos(), {"every": every})
    least = next(steps for steps in range(99) if made.grow(steps) and int(made.count) == 5) + 1
    assert least == 4 * every + 1 and made.steps_check(least)[0]
    holds, problem = made.steps_check(3 * every)
    assert not holds and f"12 px have 5: distiller.steps must be at least {least}, got {3 * every}, end" in problem
    assert build_parameterisation("pyramid", make_photos(), {"every": 0}).steps_check(1)[0]


def test_a_distiller_needs_steps_for_all_layers(accelerator):
    whole = build("mean_match", "pyramid", accelerator)
    parts = whole.parameterisation, whole.method
    with pytest.raises(InputError, match="8 px have 4: distiller.steps must be at least 10, got 9, ending at 4 px"):
        Distiller(*parts, replace(whole.settings, steps=9), accelerator)
    assert Distiller(*parts, replace(whole.settings, steps=0), accelerator).outer_step == 0


def test_what_is_stored_is_what_it_shows():
    pairs = make_photos(M, 16, 16)
    made = build_parameterisation("pyramid", pairs, {"every": 0}, ENDS)
    packed = pack(made, SPACE, StorageSettings(pixels="uint8"))
    assert packed.decoder.kind is Pixels and packed.tensors["images"].dtype == torch.uint8
    shown = packed.decode()["images"]
    torch.testing.assert_close(shown.double(), made().images.detach(), rtol=0, atol=0.51 / 255 / min(SPACE.std))
    assert packed.tensors["images"].numel() < made.layers.numel()


def test_images_of_other_channels_are_refused():
    with pytest.raises(InputError, match="pyramid is for grey or RGB images, got 2 channels"):
        build_parameterisation("pyramid", Pairs(torch.zeros(1, 2, 4, 4), torch.zeros(1, 1)))
    assert make_pairs(1, 0).images.shape[1] == 1

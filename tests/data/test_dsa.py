import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torchvision.transforms.functional import InterpolationMode, affine

from ssdd_hub.data import augment
from ssdd_hub.data.augment import (
    AUGMENTATIONS,
    FURTHER,
    OPERATIONS,
    augment_dsa,
    change_colours,
    cut_out,
    mirror,
    rescale,
    resize_crops,
    rotate,
    shift,
)


def make_images(count=4, channels=3, height=9, width=9, seed=0, dtype=torch.float32):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, height, width, generator=source, dtype=dtype)


@pytest.mark.parametrize("name", [*AUGMENTATIONS, *OPERATIONS, *FURTHER])
def test_images_keep_the_usual_layout(name):
    """Not channels last: from such images oneDNN corrupts weight gradients of networks in the usual layout."""
    operation = {**AUGMENTATIONS, **OPERATIONS, **FURTHER}[name]
    given = make_images(height=8, width=8)
    assert operation(given, torch.Generator().manual_seed(0), False).is_contiguous()


def ones(count=4):
    return torch.ones(count)


@pytest.mark.parametrize("channels", [1, 3])
def test_parameters_that_change_nothing_change_nothing(channels):
    images = make_images(channels=channels)
    zeros = torch.zeros(4)
    torch.testing.assert_close(change_colours(images, zeros, ones(), ones()), images)
    assert torch.equal(shift(images, torch.zeros(4, 2, dtype=torch.int64)), images)
    assert torch.equal(mirror(images, torch.zeros(4, dtype=torch.bool)), images)
    torch.testing.assert_close(rescale(images, torch.ones(4, 2)), images)
    torch.testing.assert_close(rotate(images, zeros), images)


def test_colours_are_those_of_a_plain_loop():
    images = make_images(dtype=torch.float64)
    drawn = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = []
    for image, brightness, saturation, contrast in zip(images.numpy(), *drawn.numpy(), strict=True):
        brighter = image + brightness
        grey = brighter.mean(0)
        saturated = np.stack([grey * (1 - saturation) + channel * saturation for channel in brighter])
        expected.append(saturated.mean() * (1 - contrast) + saturated * contrast)
    np.testing.assert_allclose(change_colours(images, *drawn), np.stack(expected), rtol=1e-12, atol=1e-12)


def test_saturation_0_makes_grey_and_contrast_0_one_colour():
    images = make_images()
    grey = change_colours(images, torch.zeros(4), torch.zeros(4), ones())
    torch.testing.assert_close(grey, images.mean(1, keepdim=True).expand_as(images))
    flat = change_colours(images, 0.25 * ones(), ones(), torch.zeros(4))
    torch.testing.assert_close(flat, (images.mean((1, 2, 3), keepdim=True) + 0.25).expand_as(images))
    images = make_images(channels=1)
    result = change_colours(images, torch.zeros(4), torch.tensor([0.0, 0.5, 1.5, 2.0]), ones())
    torch.testing.assert_close(result, images, rtol=0, atol=1e-6)


def test_a_shift_is_a_crop_of_the_padded_image():
    images = make_images(25, height=6, width=8)
    offsets = torch.cartesian_prod(torch.arange(-2, 3), torch.arange(-2, 3))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    for image, result, (down, right) in zip(padded, shift(images, offsets), offsets.tolist(), strict=True):
        assert torch.equal(result, image[:, 2 + down : 8 + down, 2 + right : 10 + right])


@pytest.mark.parametrize("size", [8, 9, 10, 11])
def test_what_is_cut_out_is_the_part_of_a_square_that_lies_inside(size):
    length = {8: 4, 9: 5, 10: 5, 11: 6}[size]
    centres = torch.cartesian_prod(torch.arange(size + 1), torch.arange(size + 1))
    images = make_images(len(centres), 2, size, size) + 10
    result = cut_out(images, centres)
    for image, cut, (row, column) in zip(images, result, centres.tolist(), strict=True):
        top, left = row - length // 2, column - length // 2
        expected = image.clone()
        expected[:, max(top, 0) : max(top + length, 0), max(left, 0) : max(left + length, 0)] = 0
        assert torch.equal(cut, expected)
    assert (result == 0).sum((1, 2, 3)).max() == 2 * length**2


def test_a_flip_mirrors_the_chosen_images_exactly():
    images = make_images(2, width=6)
    result = mirror(images, torch.tensor([True, False]))
    assert torch.equal(result[0], images[0].flip(-1))
    assert torch.equal(result[1], images[1])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 9])
def test_rotation_is_torchvision_s(channels, size):
    images, degrees = make_images(5, channels, size, size), [-15.0, -3.5, 0.25, 7.0, 15.0]
    # Of a matrix, torchvision's angle is clockwise.
    for image, angle, result in zip(images, degrees, rotate(images, torch.tensor(degrees)), strict=True):
        expected = affine(image, -angle, [0, 0], 1.0, [0.0, 0.0], InterpolationMode.BILINEAR)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)


def test_scaling_is_scipy_s():
    image = make_images(1, 1, 8, 10, dtype=torch.float64)
    factors = np.array([1.2, 0.9])
    centre = (np.array([8, 10]) - 1) / 2
    expected = ndimage.affine_transform(
        image[0, 0].numpy(), factors, centre - factors * centre, order=1, mode="grid-constant"
    )
    result = rescale(image, torch.tensor(factors)[None])
    np.testing.assert_allclose(result[0, 0], expected, rtol=0, atol=1e-12)


def drawn_by(monkeypatch, operation, function, count=4000, size=16):
    """Returns what an operation hands on to its function."""
    seen = []
    monkeypatch.setattr(augment, function, lambda images, *values: seen.append(values) or images)
    OPERATIONS[operation](torch.zeros(count, 3, size, size), torch.Generator().manual_seed(0))
    return seen[0]


def assert_uniform(values, low, high):
    assert low <= values.min() < low + 0.01 * (high - low)
    assert high - 0.01 * (high - low) < values.max() <= high
    # Five standard deviations of the mean of uniform numbers.
    width = (high - low) / math.sqrt(12 * len(values))
    assert abs(values.double().mean() - (low + high) / 2) < 5 * width
    assert values.double().std() == pytest.approx((high - low) / math.sqrt(12), rel=0.03)


def test_ranges_are_those_of_the_paper_s_code(monkeypatch):
    ranges = ((-0.5, 0.5), (0.0, 2.0), (0.5, 1.5))
    for values, (low, high) in zip(drawn_by(monkeypatch, "colour", "change_colours"), ranges, strict=True):
        assert_uniform(values, low, high)
    (factors,) = drawn_by(monkeypatch, "scale", "rescale")
    for column in factors.T:
        assert_uniform(column, 1 / 1.2, 1.2)
    assert abs(torch.corrcoef(factors.T)[0, 1]) < 0.1
    (degrees,) = drawn_by(monkeypatch, "rotate", "rotate")
    assert_uniform(degrees, -15.0, 15.0)
    (flips,) = drawn_by(monkeypatch, "flip", "mirror")
    assert abs(flips.double().mean() - 0.5) < 5 * 0.5 / math.sqrt(4000)


@pytest.mark.parametrize(
    ("operation", "function", "size", "drawn"),
    [
        # An eighth at most.
        *(("crop", "shift", size, range(-most, most + 1)) for size, most in ((16, 2), (28, 4), (32, 4), (20, 3))),
        # Anywhere; an even length has one more place.
        *(("cutout", "cut_out", size, range(last + 1)) for size, last in ((8, 8), (9, 8), (10, 9), (11, 11))),
    ],
)
def test_crops_and_cutouts_are_anywhere_in_their_range(monkeypatch, operation, function, size, drawn):
    (values,) = drawn_by(monkeypatch, operation, function, 2000, size)
    for column in values.T:
        assert column.unique().tolist() == list(drawn)


def test_each_call_applies_one_operation_and_all_are_as_likely(monkeypatch):
    called = []
    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, lambda images, *_, name=name: called.append(name) or images)
    drawn = torch.Generator().manual_seed(0)
    for _ in range(3000):
        augment_dsa(torch.zeros(1, 1, 4, 4), drawn)
    assert len(called) == 3000
    assert all(abs(called.count(name) - 500) < 5 * math.sqrt(500 * 5 / 6) for name in OPERATIONS)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", list(OPERATIONS))
def test_an_operation_is_differentiable_and_a_function_of_its_generator(name, channels):
    images = make_images(6, channels, dtype=torch.float64).requires_grad_()
    first, again, other = (OPERATIONS[name](images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == images.shape and first.dtype == images.dtype
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # What an operation does to images is linear but for the brightness that it adds.
    (gradient,) = torch.autograd.grad(first.square().sum() / 2, images)
    direction = make_images(6, channels, seed=3, dtype=torch.float64)
    step = OPERATIONS[name](images + direction, torch.Generator().manual_seed(1)) - first
    torch.testing.assert_close((gradient * direction).sum(), (first * step).sum())
    assert gradient.abs().sum() > 0


def test_images_of_a_batch_draw_on_their_own():
    images = make_images(1, height=16, width=16).expand(50, -1, -1, -1)
    for name in ("colour", "crop", "cutout", "scale", "rotate"):
        results = OPERATIONS[name](images, torch.Generator().manual_seed(0))
        assert len(results.flatten(1).unique(dim=0)) > 10, name


def test_one_image_of_one_pixel_has_a_flip_and_a_colour():
    image = torch.ones(1, 1, 1, 1)
    for seed in range(5):
        assert torch.equal(OPERATIONS["flip"](image, torch.Generator().manual_seed(seed)), image)
        assert 0.5 <= OPERATIONS["colour"](image, torch.Generator().manual_seed(seed)).item() <= 1.5


def test_a_crop_is_shown_at_the_size_of_its_image():
    images = make_images(3, height=8, width=12, dtype=torch.float64)
    whole = resize_crops(images, torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    torch.testing.assert_close(whole, images, rtol=0, atol=1e-5)
    crops = torch.tensor([[0.25, 0.5, 0.5, 0.5], [0.0, 0.0, 0.5, 0.25], [0.5, 0.25, 0.25, 0.75]])
    for image, found, (top, left, height, width) in zip(images, resize_crops(images, crops), crops, strict=True):
        rows, columns = slice(int(8 * top), int(8 * (top + height))), slice(int(12 * left), int(12 * (left + width)))
        expected = torch.nn.functional.interpolate(image[None, :, rows, columns], (8, 12), mode="bilinear")[0]
        # Beyond the centres of the crop's outer pixels there is more of the image.
        inside = (slice(None), slice(2, 6), slice(2, -2))
        torch.testing.assert_close(found[inside], expected[inside], rtol=0, atol=1e-5)


def test_random_parts_are_of_the_shares_and_proportions_of_the_paper(monkeypatch):
    seen = []
    monkeypatch.setattr(augment, "resize_crops", lambda images, crops: seen.append(crops) or images)
    images = torch.zeros(4000, 1, 2, 2)
    FURTHER["resize"](images, torch.Generator().manual_seed(0), False)
    FURTHER["resize"](images, torch.Generator().manual_seed(0), True)
    assert len(seen[1]) == 1
    top, left, height, width = seen[0].T
    assert min(top.min(), left.min()) >= 0 and max((top + height).max(), (left + width).max()) <= 1 + 1e-6
    area, ratio = height * width, width / height
    assert 0.079 < area.min() < 0.1 and area.max() > 0.95 and abs(area.mean() - 0.53) < 0.02
    assert 0.74 < ratio.min() < 0.76 and 1.32 < ratio.max() < 1.34


def test_half_of_the_images_get_noise():
    images = torch.zeros(1000, 1, 4, 4)
    noisy = FURTHER["noise"](images, torch.Generator().manual_seed(0), False)
    changed = noisy.flatten(1).abs().sum(1) > 0
    assert 450 < changed.sum() < 550 and noisy[changed].std().item() == pytest.approx(0.2, rel=0.05)
    assert noisy[changed].mean().abs() < 0.01


def test_gradients_pass_a_random_part_with_noise():
    images = make_images(2, 1, 4, 4, dtype=torch.float64).requires_grad_()

    def change(given):
        return AUGMENTATIONS["flip-resize-noise"](given, torch.Generator().manual_seed(1), False)

    assert torch.autograd.gradcheck(change, images)

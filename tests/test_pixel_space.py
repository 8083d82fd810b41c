import json

import pytest
import torch

from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.pixel_space import PixelSpace

RGB = PixelSpace((0.5, 0.4, 0.3), (0.2, 0.25, 0.5))


def test_channels_are_normalised_one_by_one_and_the_raw_space_leaves_them():
    pixels = torch.tensor([0.7, 0.9, 0.8])[:, None, None].expand(3, 2, 2)
    torch.testing.assert_close(RGB.normalise(pixels), torch.tensor([1.0, 2.0, 1.0])[:, None, None].expand(3, 2, 2))
    assert torch.equal(PixelSpace.raw(3).normalise(pixels), pixels) and PixelSpace.raw(4).channels == 4


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 4, 5), (7, 2, 3, 4, 5), (0, 3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_denormalise_undoes_normalise(shape, dtype):
    # Distilled images leave [0, 1]; nothing is clipped.
    pixels = torch.rand(shape, dtype=dtype) * 4 - 2
    back = RGB.denormalise(RGB.normalise(pixels))
    assert back.dtype == dtype
    torch.testing.assert_close(back, pixels)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_the_measured_space_gives_mean_0_and_std_1_in_each_channel(chunk):
    source = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (10, 3, 5, 4), generator=source, dtype=torch.uint8)
    pixels[:, 1] //= 4
    normalised = PixelSpace.of(pixels, chunk).normalise(pixels.double() / 255)
    torch.testing.assert_close(normalised.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(normalised.std((0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64))


def test_a_constant_channel_keeps_its_scale():
    pixels = torch.full((4, 2, 3, 3), 51, dtype=torch.uint8)
    pixels[:2, 1] = 255
    space = PixelSpace.of(pixels)
    assert space.mean == pytest.approx((0.2, 0.6))
    assert space.std == pytest.approx((1.0, 0.4))


def test_a_space_comes_back_from_json():
    assert PixelSpace.from_dict(json.loads(json.dumps(RGB.to_dict()))) == RGB
    assert PixelSpace([0, 1], torch.tensor([1, 2])) == PixelSpace((0.0, 1.0), (1.0, 2.0))


def test_a_space_that_cannot_be_is_refused():
    for mean, std in (((0.5,), (0.5, 0.5)), ((), ())):
        with pytest.raises(SettingsError, match="as many means as stds, at least one"):
            PixelSpace(mean, std)
    for scale in (0.0, -1.0, float("nan")):
        with pytest.raises(SettingsError, match="must be above 0"):
            PixelSpace((0.5,), (scale,))


@pytest.mark.parametrize("method", [RGB.normalise, RGB.denormalise])
def test_images_of_other_channels_and_bytes_are_refused(method):
    for shape in ((1, 4, 4), (2, 1, 4, 4), (3, 4, 4, 3)):
        with pytest.raises(ValueError, match="has 3 channels, the images .* do not"):
            method(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"floating-point .* required, got torch\.uint8: divide pixels by 255"):
        method(torch.zeros(3, 4, 4, dtype=torch.uint8))


@pytest.mark.parametrize("mean", ["0.5", "11", "text", 0.5, None, ["a"], [None], [10**400], [[1]]])
def test_what_is_no_list_of_numbers_is_refused(mean):
    with pytest.raises(InputError, match="needs a list of numbers as mean and as std"):
        PixelSpace(mean, (1.0,))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_space_is_finite(value):
    with pytest.raises(InputError, match="must be a number from|must be above 0"):
        PixelSpace((value,), (1.0,))

"""What a distilled set starts from."""

import pytest
import torch

from ssdd_hub.data.bank import ImageBank, fingerprint_pixels
from ssdd_hub.errors import InputError
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.seeds import generator
from ssdd_hub.selection.methods import SelectionSettings, choose_rows
from ssdd_hub.selection.source import Source
from ssdd_hub.selection.start import INITS, start_from
from ssdd_hub.targets.transform import TargetTransform

SMALL = SelectionSettings(
    expert_args={"widths": [4, 4], "norm": "instance"}, experts=1, expert_steps=2, expert_batch_size=8
)


@pytest.fixture
def source(small_teacher):
    pixels = torch.randint(0, 256, (20, 1, 16, 16), generator=torch.Generator().manual_seed(4)).to(torch.uint8)
    teacher = small_teacher(channels=1)
    features = teacher(pixels / 255)
    fitted = TargetTransform.fit("standardise", features)
    bank = ImageBank(pixels, None, None, {"name": "noise", "fingerprint": fingerprint_pixels(pixels)})
    return Source(bank, fitted(features), teacher, fitted, PixelSpace((0.5,), (0.25,)))


def test_a_random_start_is_that_of_the_first_runs(source):
    images, _ = start_from("random", source, 6, 3, SMALL)
    assert torch.equal(
        images, source.bank.pixels[torch.randperm(20, generator=generator(3, "first images"))[:6]] / 255
    )


@pytest.mark.parametrize("init", INITS)
def test_every_start_gives_images_with_their_targets(source, init):
    images, targets = start_from(init, source, 6, 3, SMALL, torch.float64)
    assert images.dtype == torch.float64 and images.shape == (6, 1, 16, 16)
    expected = source.transform(source.teacher(images.float()))
    torch.testing.assert_close(targets, expected, rtol=1e-3, atol=1e-4)
    again = start_from(init, source, 6, 3, SMALL, torch.float64)
    assert torch.equal(images, again[0]) and torch.equal(targets, again[1])
    real = bool((images[:, None] == source.bank.pixels.double() / 255).flatten(2).all(2).any(1).all())
    assert real == (init != "noise")


def test_noise_may_be_more_than_the_source_and_real_images_not(source):
    assert len(start_from("noise", source, 30, 0, SMALL)[0]) == 30
    with pytest.raises(InputError, match="30 images are to be selected, and there are only 20: select fewer"):
        start_from("kcenter", source, 30, 0, SMALL)


def test_noise_has_no_rows(source):
    with pytest.raises(InputError, match="there is no selection 'gaussian' of real images: use one of random, kmeans"):
        choose_rows("gaussian", source, 3, 0, SMALL)

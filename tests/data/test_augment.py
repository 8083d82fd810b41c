import pytest
import torch
from torch.nn import functional

from ssdd_hub.data.augment import PADDING, crop_flip, draw_views


def make_pixels(dtype=torch.float32, count=6, channels=2, height=5, width=7):
    source = torch.Generator().manual_seed(0)
    pixels = torch.randint(1, 256, (count, channels, height, width), generator=source)
    return pixels.to(torch.uint8) if dtype == torch.uint8 else pixels.to(dtype) / 255


def one_by_one(pixels, views):
    """Pad, crop, then flip, each image on its own."""
    height, width = pixels.shape[-2:]
    images = []
    for image, (top, left, flip) in zip(pixels, views.tolist(), strict=True):
        cropped = functional.pad(image, (4, 4, 4, 4))[:, top : top + height, left : left + width]
        images.append(cropped.flip(-1) if flip else cropped)
    return torch.stack(images)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(3))
def test_a_batch_is_cropped_and_flipped_as_image_by_image(dtype, seed):
    pixels = make_pixels(dtype)
    views = draw_views(len(pixels), torch.Generator().manual_seed(seed))
    result = crop_flip(pixels, views)
    assert result.dtype == dtype
    assert torch.equal(result, one_by_one(pixels, views))


def test_the_offset_of_the_padding_is_the_image_itself_and_the_flip_mirrors_it():
    pixels = make_pixels()[:2]
    result = crop_flip(pixels, torch.tensor([[PADDING, PADDING, 0], [PADDING, PADDING, 1]]))
    assert torch.equal(result[0], pixels[0])
    assert torch.equal(result[1], pixels[1].flip(-1))


def test_the_border_is_black():
    result = crop_flip(make_pixels()[:2], torch.tensor([[0, 8, 0], [8, 0, 1]]))
    # Offset 0 shows the four padded rows above, 8 those below and to the right.
    assert (result[0, :, :4] == 0).all() and (result[0, :, 4:, -4:] == 0).all() and (result[0, :, 4:, :3] > 0).all()
    assert (result[1, :, -4:] == 0).all() and (result[1, :, :1, -4:] == 0).all() and (result[1, :, :1, :3] > 0).all()


def test_images_smaller_than_the_padding_and_empty_batches_work():
    tiny = make_pixels(count=20, height=2, width=2)
    views = draw_views(20, torch.Generator().manual_seed(0))
    assert torch.equal(crop_flip(tiny, views), one_by_one(tiny, views))
    assert crop_flip(tiny[:0], views[:0]).shape == (0, 2, 2, 2)


def test_views_cover_all_offsets_and_both_flips_evenly():
    views = draw_views(9000, torch.Generator().manual_seed(0))
    assert views.shape == (9000, 3) and views.dtype == torch.int64
    for column, choices in ((0, 9), (1, 9), (2, 2)):
        counts = torch.bincount(views[:, column], minlength=choices)
        assert len(counts) == choices
        expected = 9000 / choices
        # Five standard deviations of a binomial.
        assert ((counts - expected).abs() < 5 * (expected * (1 - 1 / choices)) ** 0.5).all()


def test_a_view_is_a_function_of_its_generator():
    first, again, other = (draw_views(50, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)

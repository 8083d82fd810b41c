import numpy as np
import pytest
import torch
from torch.nn import functional

from ssdd_hub.data.tiles import enlarge, sample, shrink


def in_plain_loops(tile, factor):
    """Bilinear enlargement from its definition: each point lies between the centres of its nearest pixels."""
    height, width = tile.shape
    large = np.zeros((height * factor, width * factor))
    for row in range(height * factor):
        for column in range(width * factor):
            y, x = ((place + 0.5) / factor - 0.5 for place in (row, column))
            for dy in (0, 1):
                for dx in (0, 1):
                    i, j = int(np.floor(y)) + dy, int(np.floor(x)) + dx
                    weight = (1 - abs(y - i)) * (1 - abs(x - j))
                    large[row, column] += weight * tile[np.clip(i, 0, height - 1), np.clip(j, 0, width - 1)]
    return large


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("sides", [(5, 7), (1, 3), (1, 1)])
def test_enlarging_is_bilinear(factor, sides):
    tiles = torch.randn(2, 3, *sides, dtype=torch.float64, generator=torch.Generator().manual_seed(factor))
    found = enlarge(tiles, factor)
    assert found.shape == (2, 3, sides[0] * factor, sides[1] * factor)
    np.testing.assert_allclose(found[1, 2], in_plain_loops(tiles[1, 2].numpy(), factor), rtol=0, atol=1e-12)
    expected = functional.interpolate(tiles, scale_factor=factor, mode="bilinear")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_the_gradient_of_enlarging_is_that_of_finite_differences(factor):
    tiles = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda given: enlarge(given, factor), tiles)


def test_shrinking_takes_the_mean_of_each_square():
    images = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(shrink(images, 2), torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]]))
    assert shrink(images, 1) is images


def test_places_between_pixels_are_sampled_bilinearly_and_those_outside_at_the_border():
    drawn = torch.Generator().manual_seed(2)
    images = torch.randn(2, 3, 5, 7, dtype=torch.float64, generator=drawn)
    rows, columns = ((torch.rand(2, count, generator=drawn) * 1.6 - 0.3) * size for count, size in ((4, 5), (6, 7)))
    found = sample(images, rows, columns)
    # In half sizes from the centre, as `grid_sample` has them.
    grid = torch.stack(
        [
            (2 * columns + 1)[:, None].expand(2, 4, 6) / 7 - 1,
            (2 * rows + 1)[:, :, None].expand(2, 4, 6) / 5 - 1,
        ],
        3,
    )
    expected = functional.grid_sample(images, grid.double(), padding_mode="border", align_corners=False)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    shared = sample(images, rows[0], columns[0])
    torch.testing.assert_close(shared[0], found[0], rtol=1e-12, atol=1e-12)
    size = [(torch.arange(large) + 0.5) * small / large - 0.5 for large, small in ((13, 5), (9, 7))]
    expected = functional.interpolate(images, (13, 9), mode="bilinear", align_corners=False)
    torch.testing.assert_close(sample(images, *(each.double() for each in size)), expected, rtol=0, atol=1e-6)
    assert torch.autograd.gradcheck(lambda given: sample(given, rows, columns), images.requires_grad_())

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ssdd_hub.sets.preview import MOST_IMAGES, to_grid, to_picture, to_png, write_preview

WHITE = 255


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pixels_become_eight_bits_and_what_lies_outside_is_clipped(channels, mode, dtype):
    values = torch.tensor([-3.0, -0.001, 0.0, 0.4 / 255, 0.6 / 255, 100.4 / 255, 254.6 / 255, 1.0, 1.001, 9.0])
    # Rows and columns differ, and the channels too.
    image = torch.stack([values.roll(channel) for channel in range(channels)]).reshape(channels, 2, 5).to(dtype)
    picture = to_picture(image)
    assert picture.mode == mode and picture.size == (5, 2)
    shown = np.asarray(picture).reshape(2, 5, channels)
    expected = np.array([0, 0, 0, 0, 1, 100, 255, 255, 255, 255])
    for channel in range(channels):
        assert shown[..., channel].ravel().tolist() == np.roll(expected, channel).tolist()


def test_a_png_gives_back_the_very_pixels():
    picture = to_picture(torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0)))
    with Image.open(io.BytesIO(to_png(picture))) as again:
        assert again.format == "PNG" and np.array_equal(np.asarray(again), np.asarray(picture))


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (4, 2, 2), (5, 3, 2), (64, 8, 8)])
def test_a_grid_has_all_pictures_in_rows_a_gap_apart(count, columns, rows):
    pictures = [Image.new("L", (4, 3), index) for index in range(count)]
    grid = np.asarray(to_grid(pictures, cell=8, gap=1))
    # Twice as large, so 8 wide and 6 high.
    assert grid.shape == (rows * 7 - 1, columns * 9 - 1)
    expected = np.full_like(grid, WHITE)
    for index in range(count):
        top, left = index // columns * 7, index % columns * 9
        expected[top : top + 6, left : left + 8] = index
    assert np.array_equal(grid, expected)


def test_pictures_are_enlarged_without_smoothing_and_never_shrunk():
    picture = Image.fromarray(np.array([[0, 200, 50]], np.uint8))
    assert np.asarray(to_grid([picture], cell=8)).tolist() == [[0, 0, 200, 200, 50, 50]] * 2
    assert np.asarray(to_grid([picture], cell=2)).tolist() == [[0, 200, 50]]


def test_a_grid_keeps_colours():
    grid = np.asarray(to_grid([Image.new("RGB", (2, 2), "red"), Image.new("RGB", (2, 2), "blue")], cell=2, gap=3))
    assert grid[0].tolist() == [[255, 0, 0]] * 2 + [[255, 255, 255]] * 3 + [[0, 0, 255]] * 2


@pytest.mark.parametrize("count", [1, MOST_IMAGES, MOST_IMAGES + 1])
def test_the_preview_of_a_set_shows_its_first_images(tmp_path, count):
    pixels = torch.linspace(0, 1, count).reshape(-1, 1, 1, 1).expand(-1, 3, 48, 48)
    write_preview(tmp_path / "preview.png", pixels)
    expected = to_grid([to_picture(image) for image in pixels[:MOST_IMAGES]])
    with Image.open(tmp_path / "preview.png") as preview:
        assert preview.format == "PNG"
        assert np.array_equal(np.asarray(preview), np.asarray(expected))
        assert preview.size == ((96, 96) if count == 1 else (8 * 98 - 2, 8 * 98 - 2))

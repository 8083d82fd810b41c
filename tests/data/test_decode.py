import struct
import tempfile
import zlib

import numpy as np
import pytest
import torch
from data_folders import encode, flat
from PIL import Image
from torchvision.transforms import v2

from ssdd_hub.data.decode import CorruptImageError, PixelStore, decode_image, fit_square
from ssdd_hub.errors import InputError

RAMP = np.arange(0, 240, 240 // (12 * 10), dtype=np.uint8).reshape(12, 10)
COLOURS = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)


def decoded(image, kind="PNG", **options):
    result = decode_image(encode(image, kind, **options))
    return result.mode, np.asarray(result)


def array(values, dtype=np.uint8):
    return Image.fromarray(np.array(values, dtype=dtype))


PALETTE = array(RAMP // 120)
PALETTE.putpalette([250, 10, 20, 0, 128, 255])
OF_PALETTE, OVER_WHITE = (np.where((RAMP < 120)[..., None], first, [0, 128, 255]) for first in ([250, 10, 20], 255))
WIDE = array([[0, 257, 300], [25700, 65278, 65535]], np.uint16)
FLAT = np.full((16, 16, 3), (200, 60, 30), dtype=np.uint8)

# Image, format, options, expected mode and values, tolerance.
DECODED = {
    "colours": (array(COLOURS), "PNG", {}, "RGB", COLOURS, 0),
    "grey": (array(RAMP), "PNG", {}, "L", RAMP, 0),
    "one bit": (array(RAMP > 100, bool), "PNG", {}, "L", (RAMP > 100) * 255, 0),
    **{f"16 bits {kind}": (WIDE, kind, {}, "L", [[0, 1, 1], [100, 254, 255]], 0) for kind in ("PNG", "TIFF", "PPM")},
    "32 bits": (array([[0, 25700, 65535]], np.int32), "TIFF", {}, "L", [[0, 100, 255]], 0),
    "fractions": (array([[0, 0.2, 1]], np.float32), "TIFF", {}, "L", [[0, 51, 255]], 0),
    "floating 8 bits": (array([[0, 51.4, 255]], np.float32), "TIFF", {}, "L", [[0, 51, 255]], 0),
    "palette": (PALETTE, "PNG", {}, "RGB", OF_PALETTE, 0),
    "transparent PNG": (PALETTE, "PNG", {"transparency": 0}, "RGB", OVER_WHITE, 0),
    "transparent grey": (array([[9, 8]]), "PNG", {"transparency": 9}, "L", [[255, 8]], 0),
    "transparent 16 bits": (WIDE, "PNG", {"transparency": 300}, "L", [[0, 1, 255], [100, 254, 255]], 0),
    "transparent GIF": (PALETTE, "GIF", {"transparency": 0}, "RGB", OVER_WHITE, 0),
    "RGBA": (
        array([[[10, 20, 30, 0], [10, 20, 30, 255], [0, 100, 200, 51]]]),
        *("PNG", {}, "RGB", [[[255, 255, 255], [10, 20, 30], [204, 224, 244]]], 1),  # 0.2 * colour + 0.8 * 255
    ),
    "LA": (array([[[10, 0], [10, 255], [100, 51]]]), "PNG", {}, "L", [[255, 10, 224]], 1),
    "CMYK": (array(FLAT).convert("CMYK"), "JPEG", {"quality": 95}, "RGB", FLAT, 4),
    "YCbCr": (array(COLOURS).convert("YCbCr"), "TIFF", {}, "RGB", COLOURS, 3),
}


@pytest.mark.parametrize("case", DECODED)
def test_images_are_decoded_to_8_bits_in_grey_or_colour_over_white(case):
    image, kind, options, mode, expected, tolerance = DECODED[case]
    found, values = decoded(image, kind, **options)
    assert found == mode
    np.testing.assert_allclose(values, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        ([[0, 70000]], np.int32, r"mode I must lie in \[0, 65535\]; they span \[0, 70000\]"),
        *(([[0, wrong]], np.float32, "values of mode F must lie in") for wrong in (-0.5, 256, np.nan)),
    ],
)
def test_values_outside_the_known_ranges_are_refused(values, dtype, message):
    with pytest.raises(CorruptImageError, match=message):
        decoded(array(values, dtype), "TIFF")


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
        (8, np.rot90),
    ],
)
def test_the_exif_orientation_is_applied(orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    _, values = decoded(Image.fromarray(COLOURS), exif=exif)
    np.testing.assert_array_equal(values, upright(COLOURS))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_truncated_file_is_corrupt(kind):
    whole = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)), kind)
    decode_image(whole)
    with pytest.raises(CorruptImageError):
        decode_image(whole[: len(whole) // 2])


def test_what_is_no_image_is_corrupt_and_named_without_memory_addresses():
    for content in (b"", b"hello", b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(CorruptImageError, match="^(?!.*0x)"):
            decode_image(content)


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_a_decompression_bomb_is_corrupt_whether_pillow_warns_or_refuses(side):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    with pytest.raises(CorruptImageError, match="DecompressionBomb"):
        decode_image(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size_with_nearly_the_same_result():
    smooth = np.asarray(Image.fromarray(COLOURS).resize((640, 512), Image.Resampling.BICUBIC))
    data = encode(Image.fromarray(smooth), "JPEG", quality=95)
    whole, reduced = decode_image(data), decode_image(data, 32)
    assert whole.size == (640, 512)
    assert reduced.size == (80, 64)
    difference = np.asarray(fit_square(whole, 32), float) - np.asarray(fit_square(reduced, 32), float)
    assert np.abs(difference).mean() < 1


@pytest.mark.parametrize("shape", [(33, 57), (57, 33), (20, 20), (16, 40), (9, 31)])
def test_the_square_is_torchvisions_resize_and_centre_crop(shape):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    reference = v2.Compose([v2.Resize(16, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(16)])
    np.testing.assert_array_equal(np.asarray(fit_square(image, 16)), np.asarray(reference(image)))


def test_an_image_of_the_right_size_is_not_touched():
    image = Image.fromarray(COLOURS[:10])
    assert fit_square(image, 10) is image


def test_a_store_turns_to_colour_when_the_first_colour_arrives_and_keeps_what_it_has():
    store = PixelStore(4, None, "auto", 10**6)
    store.add(flat(7), "row 0")
    assert store.pixels().shape == (1, 1, 8, 8)
    store.add(flat((1, 2, 3)), "row 1")
    store.add(flat(9), "row 2")
    assert store.mode == "rgb"
    assert store.pixels()[:, :, 0, 0].tolist() == [[7, 7, 7], [1, 2, 3], [9, 9, 9]]


def test_a_store_obeys_the_mode_that_is_asked_for():
    colour = flat((255, 0, 0))
    as_grey, as_rgb = PixelStore(1, None, "grey", 10**6), PixelStore(1, None, "rgb", 10**6)
    as_grey.add(colour, "row 0")
    as_rgb.add(flat(5), "row 0")
    assert as_grey.pixels()[0, :, 0, 0].tolist() == [76]  # 0.299 * 255
    assert as_rgb.pixels()[0, :, 0, 0].tolist() == [5, 5, 5]


def test_rows_and_columns_keep_their_places():
    store = PixelStore(1, None, "rgb", 10**6)
    store.add(Image.fromarray(COLOURS[:10]), "row 0")
    torch.testing.assert_close(store.pixels()[0], torch.from_numpy(COLOURS[:10]).permute(2, 0, 1))


def test_above_the_budget_pixels_live_in_a_file_that_has_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stores = [PixelStore(3, 8, "auto", budget) for budget in (3 * 64, 3 * 64 - 1)]
    for store in stores:
        for image in (flat(1), flat((1, 2, 3)), flat(3)):
            store.add(image, "row")
    assert [isinstance(store._array, np.memmap) for store in stores] == [True, True]
    torch.testing.assert_close(*(store.pixels() for store in stores), rtol=0, atol=0)
    in_memory = PixelStore(3, 8, "grey", 3 * 64)
    in_memory.add(flat(1), "row 0")
    assert not isinstance(in_memory._array, np.memmap)
    assert list(tmp_path.iterdir()) == []


def test_a_map_that_the_disk_cannot_hold_is_refused():
    with pytest.raises(InputError, match=r"the pixels need 4096000.0 GB in .* has .* GB left; choose a smaller"):
        PixelStore(10**12, 64, "grey", 0).add(flat(1), "row 0")

"""Encoded image files as upright 8-bit images, grey or RGB, of one size."""

import hashlib
import io
import math
import re
import shutil
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ssdd_hub.errors import InputError

CHANNELS = {"grey": 1, "rgb": 3}
PILLOW_MODES = {"grey": "L", "rgb": "RGB"}

SMALLEST_SIZE = 8
LARGEST_NATIVE_SIZE = 64  # larger images cost too much to keep their size without a setting
LARGEST_SIZE = 4096  # an image then takes 48 MiB, and the networks' features of it gigabytes

MOST_RESIZED_PIXELS = 2**28  # of an image whose shorter side has its final size; a long one would fill the memory

GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")
"""The Pillow modes that store no colour. A palette stores colours, even when all of them are grey."""

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TIFF", "WEBP")
"""Formats that are decoded, by Pillow's names; `JPEG` includes MPO, `PNG` APNG, `PPM` its whole family.

Pillow tries all formats that it knows, whatever the file's name, and some of them start a program (EPS) or have no
magic number. These are decoded inside the process, and each begins with bytes of its own.
"""

# First bytes of files that occur among images and are not decoded.
_REFUSED = (
    (b"%!PS", "PostScript (EPS)"),
    (b"\xc5\xd0\xd3\xc6", "PostScript (EPS)"),
    (b"%PDF", "PDF"),
    (b"8BPS", "a Photoshop document (PSD)"),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile (WMF)"),
    (b"\x01\x00\x00\x00", "a Windows metafile (EMF)"),
    (b"SIMPLE  =", "FITS"),
    (b"\x89HDF", "HDF5"),
    (b"GRIB", "GRIB"),
    (b"BUFR", "BUFR"),
    (b"icns", "an Apple icon (ICNS)"),
    (b"\x00\x00\x01\x00", "an icon (ICO)"),
    (b"P7 332", "an XV thumbnail"),
    (b"\x00\x00\x01\xb3", "MPEG video"),
    (b"\xff\x0a", "JPEG XL"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"<", "text (HTML, XML or SVG)"),
)

_SHOWN_START = 40  # bytes of a text in a message


class CorruptImageError(ValueError):
    """An image file cannot be decoded; the message says why."""


def decode_image(data: bytes, shorter_side: int | None = None) -> Image.Image:
    """Decodes the bytes of an image file to mode `L` when it is stored without colour, to `RGB` otherwise.

    Applies the EXIF orientation, lays transparent pixels over white, and reads the first frame of an animation. Grey
    images of 16 and 32 bits are scaled from `[0, 65535]`, floating-point ones from `[0, 1]`, or from `[0, 255]` when a
    value exceeds 1. A JPEG much larger than `shorter_side`, the size that it will be resized to, is decoded at a
    fraction of its size, never below twice that one. A `CorruptImageError` says why it is in none of `FORMATS`, cut
    short, of more pixels than Pillow holds safe, too long for this size, or of values outside these ranges.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(data), formats=_formats())
            if shorter_side:
                _check_shape(*image.size, shorter_side)
                image.draft(None, (2 * shorter_side, 2 * shorter_side))
            image.load()
            return _to_grey_or_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise CorruptImageError(_explain(data)) from error
    except CorruptImageError:
        raise
    # Damaged files make Pillow's readers raise nearly anything: OSError, SyntaxError, struct.error, IndexError, ...
    except Exception as error:
        raise CorruptImageError(f"{type(error).__name__}: {error}") from error


def fit_square(image: Image.Image, size: int) -> Image.Image:
    """Resizes the shorter side to `size` pixels (bicubic, antialiased) and crops the centre square."""
    width, height = image.size
    if (width, height) == (size, size):
        return image
    shorter = min(width, height)
    width, height = size * width // shorter, size * height // shorter
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + size, top + size))


def to_pixels(image: Image.Image, mode: str, size: int) -> Any:
    """Returns an image as an array `(C, size, size)`, uint8; `mode` is `grey` or `rgb`."""
    square = fit_square(image.convert(PILLOW_MODES[mode]), size)
    return np.array(square).reshape(size, size, -1).transpose(2, 0, 1)


class PixelStore:
    """At most `capacity` images of one size and mode, in one array.

    The size None is that of the first image, which all others must then have; the mode `auto` is grey until an image
    with colour arrives. Above `budget` bytes the array is that of `allocate`.

    Attributes:
        mode: `grey` or `rgb`.
        image_size: Pixels a side; 0 before the first image where none is given.
        count: Images stored.
        skipped: Why rows were left out, by their number in the order of `add` and `skip`.
    """

    def __init__(self, capacity: int, image_size: int | None, mode: str, budget: int) -> None:
        self.mode = "grey" if mode == "auto" else mode
        self.image_size = image_size or 0
        self.count, self.skipped = 0, dict[int, str]()
        self._native, self._auto = image_size is None, mode == "auto"
        self._capacity, self._budget = capacity, budget
        self._array: Any = None

    @property
    def num_rows(self) -> int:
        """Rows that are stored or left out: `add` and `skip` are called for the next one."""
        return self.count + len(self.skipped)

    def add(self, image: Image.Image, where: str) -> None:
        """Resizes and stores an image of `decode_image`, which messages call `where`."""
        self.check_size(image, where)
        if self._auto and image.mode == "RGB" and self.mode == "grey":
            self._become_colour()
        self._put(to_pixels(image, self.mode, self.image_size))

    def skip(self, reason: str) -> None:
        """Leaves a row out."""
        self.skipped[self.num_rows] = reason

    def finish(self) -> tuple[Tensor, str]:
        """Returns the images added, `(N, C, H, W)`, uint8, and their fingerprint."""
        return self.pixels(), fingerprint_pixels(self.pixels())

    def close(self) -> None:
        """Ends the use of the store, whether it was finished or not."""

    def pixels(self) -> Tensor:
        """Returns the images added so far, `(N, C, H, W)`, uint8."""
        return torch.from_numpy(self._array[: self.count])

    def check_size(self, image: Image.Image, where: str) -> None:
        """Refuses an image that cannot keep its size, or has not that of the first one, where none is given."""
        width, height = image.size
        if not self._native:
            return
        if width != height or not SMALLEST_SIZE <= width <= LARGEST_NATIVE_SIZE:
            raise InputError(
                f"the image at {where} is {width}x{height} pixels; only square images of {SMALLEST_SIZE} to "
                f"{LARGEST_NATIVE_SIZE} pixels keep their size by default: pass --data.image-size"
            )
        if self.image_size not in (0, width):
            raise InputError(
                f"the images differ in size: {self.image_size}x{self.image_size} pixels at first, {width}x{height} at "
                f"{where}; pass --data.image-size"
            )
        self.image_size = width

    @property
    def _shape(self) -> tuple[int, int, int]:
        return CHANNELS[self.mode], self.image_size, self.image_size

    def _become_colour(self) -> None:
        grey, self.mode = self._array, "rgb"
        if grey is not None:
            self._array = allocate((self._capacity, *self._shape), self._budget)
            self._array[: self.count] = grey[: self.count]

    def _put(self, pixels: Any) -> None:
        if self._array is None:
            self._array = allocate((self._capacity, *self._shape), self._budget)
        self._array[self.count] = pixels
        self.count += 1


def allocate(shape: tuple[int, ...], budget: int) -> Any:
    """Returns an array of bytes; above `budget` bytes it is a memory-mapped temporary file.

    The file has no name where the system allows that, and disappears with the process, however it ends.
    """
    size = math.prod(shape)
    if size <= budget:
        return np.empty(shape, np.uint8)
    require_room(size, tempfile.gettempdir(), "another TMPDIR")
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.uint8, "w+", shape=shape)


def require_room(size: int, folder: str | Path, other: str) -> None:
    """Refuses pixels of more bytes than a disk has left; `other` names the choice of another one."""
    if (free := shutil.disk_usage(folder).free) < size:
        # Writing to a map on a full disk would kill the process.
        raise InputError(
            f"the pixels need {size / 1e9:.1f} GB in {folder}, which has {free / 1e9:.1f} GB left; choose a "
            f"smaller --data.image-size or --data.max-images, a larger --data.memory-budget-gb, or {other}"
        )


def fingerprint_pixels(pixels: Tensor, chunk: int = 4096) -> str:
    """Returns the sha256 of the shape and the bytes of `pixels (N, C, H, W)`, uint8, read `chunk` images at a time."""
    digest = hashlib.sha256(str(tuple(pixels.shape)).encode())
    for part in torch.split(pixels, chunk):
        digest.update(part.contiguous().numpy().data)
    return digest.hexdigest()


def _explain(data: bytes) -> str:
    """Returns why the content of a file is no image that is decoded."""
    start = data[:_SHOWN_START].removeprefix(b"\xef\xbb\xbf").strip()
    if not start:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS stands for it: fetch it with git lfs pull"
    name = next((name for first, name in _REFUSED if data.startswith(first) or start.startswith(first)), None)
    if name is None and re.fullmatch(rb"[ -~\s]+", start):
        name = f"text that begins with {start.decode()!r}"
    kind = f"{name}, which is not accepted" if name else "damaged at its start, or in no accepted format"
    return f"{kind}; convert it to one of {', '.join(_formats())}"


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    # Pillow raises a KeyError for a name that it was built without.
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_shape(width: int, height: int, shorter_side: int) -> None:
    if not width * height or max(width, height) * shorter_side**2 // min(width, height) > MOST_RESIZED_PIXELS:
        raise CorruptImageError(
            f"it has {width}x{height} pixels, and more than {MOST_RESIZED_PIXELS} when its shorter side is resized to "
            f"{shorter_side}: crop it"
        )


def _to_grey_or_rgb(image: Image.Image) -> Image.Image:
    grey = image.mode in GREY_MODES
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        image = canvas
    return image.convert("L" if grey else "RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    # Pillow's own conversion to "L" clips at 255.
    values = np.asarray(image, dtype=np.float64)
    low, high = values.min(), values.max()
    top = 65535.0
    if image.mode == "F":
        top = 1.0 if high <= 1 else 255.0
    if not 0 <= low <= high <= top:
        raise ValueError(f"values of mode {image.mode} must lie in [0, {top:g}]; they span [{low:g}, {high:g}]")
    # Pillow knows no transparency of these modes: a PNG of 16 bits may call one value transparent.
    clear = values == image.info.get("transparency")
    return Image.fromarray(np.where(clear, 255, np.rint(values * (255 / top))).astype(np.uint8))

"""Preview pictures of distilled images: 8 bits a value, clipped to [0, 1]."""

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

MOST_IMAGES = 64  # in the picture of a whole set


def to_picture(image: Tensor) -> Image.Image:
    """Turns pixels `(C, H, W)` into an 8-bit picture, grey for one channel."""
    return to_exact_picture(image.clamp(0, 1).mul(255).round().to(torch.uint8))


def to_exact_picture(image: Tensor) -> Image.Image:
    """Turns `(C, H, W)`, uint8, into a picture of the same numbers."""
    values = image.cpu()
    return Image.fromarray(values[0].numpy() if len(values) == 1 else values.permute(1, 2, 0).contiguous().numpy())


def from_png(data: Any, shape: Sequence[int]) -> npt.NDArray[np.uint8] | None:
    """Returns the numbers `(C, H, W)` of the bytes of a PNG file; None where they are none of this shape."""
    channels, height, width = shape
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Its header is read first, and nothing is decoded of a picture of another size.
            picture = Image.open(io.BytesIO(data), formats=["PNG"])
            if (picture.mode, picture.size) != ("L" if channels == 1 else "RGB", (width, height)):
                return None
            return np.array(picture).reshape(height, width, channels).transpose(2, 0, 1)
    # Damaged files make Pillow's readers raise nearly anything.
    except Exception:
        return None


def to_png(picture: Image.Image, packed: bool = True) -> bytes:
    """Returns the bytes of a PNG file; not packed, it is left to what holds it to compress many at once."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", **({} if packed else {"compress_level": 0}))
    return buffer.getvalue()


def has_few_levels(images: Tensor) -> bool:
    """Whether images, uint8, are multiples of a number above 1, as of few bits: they pack better all at once."""
    return images.dtype == torch.uint8 and int(np.gcd.reduce(np.unique(images.cpu().numpy()))) > 1


def to_grid(pictures: Sequence[Image.Image], cell: int = 96, gap: int = 2) -> Image.Image:
    """Places pictures of one size in rows, enlarged without smoothing to about `cell` pixels each, `gap` apart."""
    scale = max(1, cell // max(pictures[0].size))
    width, height = (side * scale for side in pictures[0].size)
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    size = (columns * (width + gap) - gap, rows * (height + gap) - gap)
    grid = Image.new(pictures[0].mode, size, "white")
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        enlarged = picture.resize((width, height), Image.Resampling.NEAREST)
        grid.paste(enlarged, (column * (width + gap), row * (height + gap)))
    return grid


def write_preview(path: Path, pixels: Tensor) -> None:
    """Writes the picture of a set's first images `(m, C, H, W)`, of which at most `MOST_IMAGES` are shown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    to_grid([to_picture(image) for image in pixels[:MOST_IMAGES]]).save(path)

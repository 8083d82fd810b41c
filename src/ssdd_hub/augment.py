"""Random crop and flip of a batch, as pure functions of drawn parameters.

The parameters are drawn apart from their use, so that the same view can be made again: the teacher's cached features
of a fixed view belong to exactly the pixels that the student will see.
"""

import torch
from torch import Tensor
from torch.nn import functional

PADDING = 4


def draw_views(count: int, generator: torch.Generator) -> Tensor:
    """Draws a crop offset and a flip for each image.

    Args:
        count: Number of images `n`.
        generator: A CPU generator.

    Returns:
        `(n, 3)`, int64: vertical and horizontal offset in `[0, 2 * PADDING]`, and flip in `{0, 1}`.
    """
    offsets = torch.randint(0, 2 * PADDING + 1, (count, 2), generator=generator)
    flips = torch.randint(0, 2, (count, 1), generator=generator)
    return torch.cat([offsets, flips], 1)


def crop_flip(pixels: Tensor, views: Tensor) -> Tensor:
    """Pads images with black, crops them back to their size, and flips some, as in KRR-ST's released code.

    Args:
        pixels: `(n, C, H, W)`, any dtype, in `[0, 1]` or uint8, hence before normalisation.
        views: `(n, 3)`, from `draw_views`.

    Returns:
        `(n, C, H, W)`, same dtype.
    """
    height, width = pixels.shape[-2:]
    views = views.to(pixels.device)
    padded = functional.pad(pixels, (PADDING,) * 4)
    rows = views[:, :1] + torch.arange(height, device=pixels.device)  # (n, H)
    columns = torch.arange(width, device=pixels.device).expand(len(views), width)
    columns = torch.where(views[:, 2:].bool(), width - 1 - columns, columns) + views[:, 1:2]  # (n, W)
    image = torch.arange(len(views), device=pixels.device)[:, None, None, None]
    channel = torch.arange(pixels.shape[1], device=pixels.device)[None, :, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]

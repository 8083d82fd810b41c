"""Augmentations of batches: random crop and flip, and differentiable siamese augmentation.

Parameters are drawn on the CPU and separately from their use, so that they are the same on every device and the same
view can be made again: the teacher's cached features of a fixed view belong to exactly the pixels of the student.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ssdd_hub.data.tiles import sample

PADDING = 4

# The ranges of DSA (Zhao and Bilen, ICML 2021, arXiv 2102.08259): those of its released code for the strategy
# `color_crop_cutout_flip_scale_rotate`, which KRR-ST's comparisons use too.
BRIGHTNESS = 0.5
SATURATION = (0.0, 2.0)
CONTRAST = (0.5, 1.5)
CROP = 0.125
CUTOUT = 0.5
FLIP = 0.5
SCALE = (1 / 1.2, 1.2)
ROTATION = 15.0

# Of linear gradient matching (arXiv 2511.16674): the shares of an image's area that are shown, and their widths by
# their heights; the std of noise, and the share of images that have it.
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
NOISE = 0.2
NOISY = 0.5

# Of images, a generator, and whether all images share one draw.
Augmentation = Callable[[Tensor, torch.Generator, bool], Tensor]


def draw_views(count: int, generator: torch.Generator) -> Tensor:
    """Draws views `(count, 3)`, int64: vertical and horizontal offset in `[0, 2 * PADDING]`, and flip in `{0, 1}`."""
    offsets = torch.randint(0, 2 * PADDING + 1, (count, 2), generator=generator)
    flips = torch.randint(0, 2, (count, 1), generator=generator)
    return torch.cat([offsets, flips], 1)


def crop_flip(pixels: Tensor, views: Tensor) -> Tensor:
    """Pads images with black, crops them back to their size, and flips some, as in KRR-ST's released code.

    `pixels (n, C, H, W)` are of any dtype, before normalisation, and `views (n, 3)` are from `draw_views`; turns of
    fixed views are left out.
    """
    height, width = pixels.shape[-2:]
    views = views.to(pixels.device)
    padded = functional.pad(pixels, (PADDING,) * 4)
    rows = views[:, :1] + torch.arange(height, device=pixels.device)  # (n, H)
    columns = torch.arange(width, device=pixels.device).expand(len(views), width)
    columns = torch.where((views[:, 2:] % 2).bool(), width - 1 - columns, columns) + views[:, 1:2]  # (n, W)
    image = torch.arange(len(views), device=pixels.device)[:, None, None, None]
    channel = torch.arange(pixels.shape[1], device=pixels.device)[None, :, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def show_views(images: Tensor, views: Tensor, black: Tensor, turned: bool) -> Tensor:
    """Returns images `(n, C, H, W)` in fixed views `(n, 3)`: cropped, flipped, then turned by quarters anticlockwise.

    The third number of a view is its flip, as from `draw_views`, and 2 for each quarter turn. What a crop lacks is
    `black (C, 1, 1)`. Without `turned` no view has turns.
    """
    seen = crop_flip(images - black, views) + black
    for quarters in (1, 2, 3) if turned else ():
        now = (views[:, 2] // 2 == quarters).to(images.device)
        seen = torch.where(now[:, None, None, None], seen.rot90(quarters, (2, 3)), seen)
    return seen


def augment_dsa(images: Tensor, generator: torch.Generator, alike: bool = False) -> Tensor:
    """Applies DSA: one of the six `OPERATIONS`, all as likely, to a batch; each image draws its own parameters.

    Gradients pass through. The operations act on normalised images, as in the released codes: brightness is in units
    of the pixels' std, and what comes from outside an image or is cut out is 0, the mean colour and not black.

    Siamese are two batches, of any sizes, whose generators have one seed, with `alike`: all images share one draw.
    """
    drawn = int(torch.randint(len(OPERATIONS), (), generator=generator))
    return list(OPERATIONS.values())[drawn](images, generator, alike)


def augment_in_turn(names: Sequence[str]) -> Augmentation:
    """Returns the augmentation that applies several of `OPERATIONS` and `FURTHER`, in turn, to every batch."""

    def augment(images: Tensor, generator: torch.Generator, alike: bool = False) -> Tensor:
        for name in names:
            images = {**OPERATIONS, **FURTHER}[name](images, generator, alike)
        return images

    return augment


def change_colours(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Adds brightness `(n,)`, then scales the distance to each pixel's grey, then that to the image's mean.

    Saturation and contrast `(n,)` are factors: 1 changes nothing, 0 leaves grey, or the mean.
    """
    images = images + _column(brightness, images)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * _column(saturation, images)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * _column(contrast, images)


def shift(images: Tensor, offsets: Tensor) -> Tensor:
    """Moves the window over each image by `offsets (n, 2)`, int64, pixels down and right; outside it there is 0."""
    height, width = images.shape[-2:]
    offsets = offsets.to(images.device)
    rows = torch.arange(height, device=images.device) + offsets[:, :1]  # (n, H)
    columns = torch.arange(width, device=images.device) + offsets[:, 1:]  # (n, W)
    image = torch.arange(len(images), device=images.device)[:, None, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
    # Indices outside are clamped to the border, and masked afterwards.
    seen = images.movedim(1, -1)[image, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None]]
    # Not in channels last, which some networks cannot be trained in: `models.layout`.
    return seen.movedim(-1, 1).contiguous() * inside[:, None].to(images.dtype)


def cut_out(images: Tensor, centres: Tensor) -> Tensor:
    """Sets a rectangle of half the height and width in each image to 0, as far as it lies inside.

    `centres (n, 2)`, int64, are rows and columns; the centre of an even length is the pixel after it.
    """
    covered = list[Tensor]()
    for size, centre in zip(images.shape[-2:], centres.to(images.device).T, strict=True):
        length = _share(size, CUTOUT)
        places = torch.arange(size, device=images.device) - (centre - length // 2)[:, None]
        covered.append((places >= 0) & (places < length))  # (n, H), (n, W)
    kept = ~(covered[0][:, :, None] & covered[1][:, None])
    return images * kept[:, None].to(images.dtype)


def mirror(images: Tensor, flips: Tensor) -> Tensor:
    """Mirrors the images `(n, C, H, W)` for which `flips` `(n,)`, bool, is true, left to right."""
    return torch.where(flips.to(images.device)[:, None, None, None], images.flip(-1), images)


def rescale(images: Tensor, factors: Tensor) -> Tensor:
    """Scales each image about its centre, bilinearly; outside it there is 0.

    `factors (n, 2)` are for height and width: 2 shows the image at half its size, 1/2 its middle at twice its size.
    """
    zeros = torch.zeros(len(factors), dtype=factors.dtype)
    return _resample(images, [[factors[:, 1], zeros], [zeros, factors[:, 0]]])


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turns each square image about its centre, anticlockwise by `(n,)` degrees, bilinearly; outside it there is 0."""
    angles = degrees * (math.pi / 180)
    return _resample(images, [[angles.cos(), -angles.sin()], [angles.sin(), angles.cos()]])


def resize_crops(images: Tensor, crops: Tensor) -> Tensor:
    """Shows a rectangle of each image at the size of the image, bilinearly.

    `crops (n, 4)`, or `(1, 4)` for all, are top, left, height and width, as shares of the image.
    """
    crops = crops.to(images)
    parts = zip(images.shape[-2:], crops[:, :2].T, crops[:, 2:].T, strict=True)
    centres = [(torch.arange(size).to(images) + 0.5, first[:, None], part[:, None]) for size, first, part in parts]
    return sample(images, *(len(place) * first + place * part - 0.5 for place, first, part in centres))


def _resample(images: Tensor, matrix: list[list[Tensor]]) -> Tensor:
    """Samples the result at `(x, y)`, from the centre in half sizes, from the image at `matrix (x, y)`."""
    turned = torch.stack([torch.stack(row, 1) for row in matrix], 1)  # (n, 2, 2)
    affine = functional.pad(turned, (0, 1)).to(images).expand(len(images), 2, 3)
    # `align_corners` makes no difference without a translation.
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _column(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images)[:, None, None, None]


def _share(size: int, share: float) -> int:
    """Returns a share of a number of pixels, halves rounded up."""
    return int(size * share + 0.5)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _draws(images: Tensor, alike: bool) -> int:
    """Returns how many parameters are drawn; one alone holds for all images."""
    return 1 if alike else len(images)


def _random_colours(images: Tensor, generator: torch.Generator, alike: bool = False) -> Tensor:
    ranges = ((-BRIGHTNESS, BRIGHTNESS), SATURATION, CONTRAST)
    return change_colours(images, *(_uniform((_draws(images, alike),), low, high, generator) for low, high in ranges))


def _random_shift(images: Tensor, generator: torch.Generator, alike: bool = False) -> Tensor:
    most = [_share(size, CROP) for size in images.shape[-2:]]
    drawn = [torch.randint(-limit, limit + 1, (_draws(images, alike),), generator=generator) for limit in most]
    return shift(images, torch.stack(drawn, 1))


def _random_cutout(images: Tensor, generator: torch.Generator, alike: bool = False) -> Tensor:
    # A rectangle of even length has a centre between pixels, hence one more place; about a quarter lies outside.
    places = [size + 1 - _share(size, CUTOUT) % 2 for size in images.shape[-2:]]
    drawn = [torch.randint(0, count, (_draws(images, alike),), generator=generator) for count in places]
    return cut_out(images, torch.stack(drawn, 1))


def _random_mirror(images: Tensor, generator: torch.Generator, alike: bool = False) -> Tensor:
    return mirror(images, torch.rand(_draws(images, alike), generator=generator) < FLIP)


def _random_scale(images: Tensor, generator: torch.Generator, alike: bool = False) -> Tensor:
    return rescale(images, _uniform((_draws(images, alike), 2), *SCALE, generator))


def _random_rotation(images: Tensor, generator: torch.Generator, alike: bool = False) -> Tensor:
    return rotate(images, _uniform((_draws(images, alike),), -ROTATION, ROTATION, generator))


def _random_resize(images: Tensor, generator: torch.Generator, alike: bool = False) -> Tensor:
    count = _draws(images, alike)
    area = _uniform((count,), *AREA, generator)
    ratio = _uniform((count,), math.log(RATIO[0]), math.log(RATIO[1]), generator).exp()
    size = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], 1).clamp_max(1)
    return resize_crops(images, torch.cat([torch.rand(count, 2, generator=generator) * (1 - size), size], 1))


def _random_noise(images: Tensor, generator: torch.Generator, alike: bool = False) -> Tensor:
    count = _draws(images, alike)
    noise = NOISE * torch.randn(count, *images.shape[1:], generator=generator)
    noisy = torch.rand(count, generator=generator) < NOISY
    return images + (noise * noisy[:, None, None, None]).to(images)


OPERATIONS: dict[str, Augmentation] = {
    "colour": _random_colours,
    "crop": _random_shift,
    "cutout": _random_cutout,
    "flip": _random_mirror,
    "scale": _random_scale,
    "rotate": _random_rotation,
}
FURTHER: dict[str, Augmentation] = {"resize": _random_resize, "noise": _random_noise}
"""Operations that are none of DSA's: a random part of an image at its size; noise, in units of the pixels' std."""
AUGMENTATIONS: dict[str, Augmentation] = {
    "none": lambda images, generator, alike: images,
    "dsa": augment_dsa,
    "colour-crop": augment_in_turn(("colour", "crop")),
    "colour-crop-cutout": augment_in_turn(("colour", "crop", "cutout")),
    "flip-resize": augment_in_turn(("flip", "resize")),
    "flip-resize-noise": augment_in_turn(("flip", "resize", "noise")),
}
"""By name, those of methods that match a set with real images: of DSA, IDC (arXiv 2205.14959), and linear gradient
matching (arXiv 2511.16674)."""

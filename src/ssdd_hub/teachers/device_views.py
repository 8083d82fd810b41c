"""Random views of a whole batch, computed on the device of the images.

lightly's transforms take one PIL image at a time, in worker processes, for which a fast device waits. Here the steps
of the same transform become operations on a batch, with the same distributions of parameters. Pixels are close to
Pillow's, not equal: nothing is rounded to 8 bits between steps; a blur is a Gaussian, which Pillow approximates by
three box filters; and where none of 10 random crops fits into an image that is not square, the largest one that does
lies anywhere, not in the centre.
"""

import importlib.util
import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from lightly.transforms import MAETransform
from lightly.transforms.multi_view_transform import MultiViewTransform
from torch import Tensor, nn

from ssdd_hub.errors import InputError
from ssdd_hub.pixel_space import PixelSpace

# Maps `(b, C, H, W)` in `[0, 1]` to the same, with random parameters of its own for each image.
Step = Callable[[Tensor], Tensor]
Range = tuple[float, float]


class DeviceViews:
    """The views of a lightly transform, a `MultiViewTransform` or `MAETransform`, for a batch of images at once.

    All parameters are drawn on the CPU, from torch's global CPU generator, and moved to the images: inside
    `seeds.seeded(seed, "views", step)`, the views are a function of seed, step and images, and a CPU and a CUDA
    device draw the same ones.

    Raises:
        InputError: A step of the transform is not known here, or kornia is not installed.
    """

    def __init__(self, transform: Any) -> None:
        if importlib.util.find_spec("kornia") is None:
            raise _refuse("without kornia, which is not installed", "pip install 'ssdd-hub[gpu-aug]', or ")
        self.views = [_translate(view) for view in _split_views(transform)]

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """Returns a batch per view, float32, in the transform's space, of `(B, C, H, W)`, uint8, grey or RGB."""
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
            got = f"{pixels.dtype} {tuple(pixels.shape)}"
            raise ValueError(f"views need a batch (B, C, H, W) of uint8 with 1 or 3 channels, got {got}")
        # Inside a caller's autocast the matrix products would round pixels to 8 bits or fewer.
        with torch.autocast(pixels.device.type, enabled=False):
            images = pixels.float() / 255
            return [view(images) for view in self.views]


def _refuse(what: str, remedy: str = "") -> InputError:
    remedy += "make views on CPU workers (--teacher-training.views workers)"
    return InputError(f"views on the device cannot do {what}: {remedy}")


def _split_views(transform: Any) -> list[Any]:
    if isinstance(transform, MAETransform):
        return [transform.transform]
    # A class with a call of its own does more than to make one view after the other.
    if isinstance(transform, MultiViewTransform) and type(transform).__call__ is MultiViewTransform.__call__:
        return list(transform.transforms)
    raise _refuse(f"{_name(transform)}, which is not a plain MultiViewTransform or MAETransform of lightly")


def _name(step: Any) -> str:
    """Returns library and class, as torchvision and lightly both have a `GaussianBlur`."""
    return f"{type(step).__module__.partition('.')[0]}.{type(step).__name__}"


def _leaves(step: Any) -> Iterator[Any]:
    """Yields the steps of nested sequences and of lightly's wrappers around a sequence."""
    if isinstance(step, Sequence | nn.ModuleList):
        for inner in step:
            yield from _leaves(inner)
    elif _name(step) == "torchvision.Compose":
        yield from _leaves(step.transforms)
    elif re.fullmatch(r"lightly\.(\w+View\d?Transform|RandomRotateDegrees)", _name(step)):
        yield from _leaves(step.transform)
    else:
        yield step


def _translate(view: Any) -> Step:
    leaves = list(_leaves(view))
    for leaf in leaves:
        if _name(leaf) not in TRANSLATIONS:
            raise _refuse(f"the step {_name(leaf)}")
        if _name(leaf) == "torchvision.Normalize" and leaf is not leaves[-1]:
            raise _refuse("steps after Normalize")
    return partial(_in_turn, steps=[TRANSLATIONS[_name(leaf)](leaf) for leaf in leaves])


def _interpolation(step: Any) -> str:
    """Returns the mode's name; torchvision keeps an enumeration member or, in late versions, what it was given."""
    return str(getattr(step.interpolation, "value", step.interpolation))


def _translate_crop(step: Any) -> Step:
    mode = _interpolation(step)
    if mode not in KERNELS:
        raise _refuse(f"RandomResizedCrop with {mode} interpolation")
    return partial(_resized_crop, size=tuple(step.size), scale=step.scale, ratio=step.ratio, kernel=KERNELS[mode])


def _translate_rotation(step: Any) -> Step:
    if (_interpolation(step), step.expand, step.center, step.fill) != ("nearest", False, None, 0):
        raise _refuse("RandomRotation other than nearest, unexpanded, about the centre and filled with 0")
    return partial(_rotate, degrees=step.degrees)


def _translate_apply(step: Any) -> Step:
    # Images that are not chosen must keep the same size and pixel space.
    for name in map(_name, _leaves(step.transforms)):
        if name in ("torchvision.RandomResizedCrop", "torchvision.Normalize"):
            raise _refuse(f"RandomApply of {name}")
    return _sometimes(step.p, _translate(step.transforms))


def _sometimes(probability: float, step: Step) -> Step:
    def _choose(images: Tensor) -> Tensor:
        return _change(images, torch.rand(len(images)) < probability, step)

    return _choose


COLOURS = ("brightness", "contrast", "saturation", "hue")
TRANSLATIONS: dict[str, Callable[[Any], Step]] = {
    "torchvision.RandomResizedCrop": _translate_crop,
    "torchvision.RandomHorizontalFlip": lambda step: _sometimes(step.p, partial(torch.flip, dims=(-1,))),
    "torchvision.RandomVerticalFlip": lambda step: _sometimes(step.p, partial(torch.flip, dims=(-2,))),
    "torchvision.RandomRotation": _translate_rotation,
    "torchvision.RandomApply": _translate_apply,
    "torchvision.ColorJitter": lambda step: partial(_jitter, ranges=[getattr(step, name) for name in COLOURS]),
    # Grey is a saturation of 0.
    "torchvision.RandomGrayscale": lambda step: _sometimes(
        step.p, partial(_jitter, ranges=[None, None, (0, 0), None])
    ),
    "torchvision.ToTensor": lambda step: nn.Identity(),
    "torchvision.Normalize": lambda step: PixelSpace(step.mean, step.std).normalise,
    "lightly.ToTensor": lambda step: nn.Identity(),
    "lightly.RandomRotate": lambda step: _sometimes(step.prob, partial(_rotate, degrees=(step.angle, step.angle))),
    "lightly.GaussianBlur": lambda step: _sometimes(step.prob, partial(_blur, sigmas=step.sigmas)),
    "lightly.RandomSolarization": lambda step: _sometimes(step.prob, partial(_solarise, threshold=step.threshold)),
}


def _in_turn(images: Tensor, steps: Sequence[Step]) -> Tensor:
    for step in steps:
        images = step(images)
    return images


def _change(images: Tensor, chosen: Tensor, change: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """Changes the chosen images; mask and parameters `(b,)` are on the CPU, so that the host waits for no device."""
    index = chosen.nonzero().squeeze(1)
    if not len(index):
        return images
    arguments = [_move(values[index], images) for values in parameters]
    index = _move(index, images)
    return images.index_copy(0, index, change(images[index], *arguments))


def _move(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images.device, non_blocking=True)


def _uniform(count: int, bounds: Range) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(count)


def _rotate(images: Tensor, degrees: Range) -> Tensor:
    """Rotates counter-clockwise by degrees drawn from the range; what comes into sight is black."""
    from kornia.geometry.transform import rotate

    return rotate(images, _move(_uniform(len(images), degrees), images), mode="nearest")


def _resized_crop(images: Tensor, size: tuple[int, int], scale: Range, ratio: Range, kernel: Step) -> Tensor:
    from kornia.augmentation.random_generator import ResizedCropGenerator

    draw = ResizedCropGenerator(size, *(torch.tensor(bounds, dtype=torch.float32) for bounds in (scale, ratio)))
    corners = _move(draw(images.shape)["src"], images)  # (b, 4, 2), x and y of the first, ..., last, ... pixel
    columns, rows = (
        _resizing(corners[:, 0, axis], corners[:, 2, axis] + 1, images.shape[3 - axis], size[1 - axis], kernel)
        for axis in (0, 1)
    )
    # The bicubic kernel overshoots; Pillow clips after each axis.
    return (rows @ (images @ columns.mT).clamp(0, 1)).clamp(0, 1)


def _resizing(start: Tensor, end: Tensor, size: int, new_size: int, kernel: Step) -> Tensor:
    """Returns matrices `(b, 1, new_size, size)` that resize the pixels from `start` to `end` `(b,)` as Pillow does.

    Neither kornia nor torch resizes boxes of several sizes in one call with antialiasing.
    """
    start, end = (places[:, None, None, None] for places in (start, end))
    scale = (end - start) / new_size
    centres = start + (torch.arange(new_size, device=start.device)[:, None] + 0.5) * scale
    sources = torch.arange(size, device=start.device) + 0.5
    # When it shrinks, Pillow widens the kernel by as much, so that every pixel counts.
    weights = kernel(((sources - centres) / scale.clamp(min=1)).abs()) * ((sources > start) & (sources < end))
    return weights / weights.sum(-1, keepdim=True)


def _bicubic(distance: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5."""
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0))


# Weights of pixels by their distance in pixels.
KERNELS: dict[str, Step] = {"bilinear": lambda distance: (1 - distance).clamp(min=0), "bicubic": _bicubic}


def _blur(images: Tensor, sigmas: Range) -> Tensor:
    """Blurs by Gaussians of standard deviations, in pixels, drawn from the range; the image goes on with its edge."""
    from kornia.filters import gaussian_blur2d

    sigma = _uniform(len(images), sigmas).clamp(min=1e-6)  # kornia refuses 0
    size = 2 * math.ceil(3 * sigmas[1]) + 1
    return gaussian_blur2d(images, size, sigma[:, None].expand(-1, 2), "replicate")


def _solarise(images: Tensor, threshold: float) -> Tensor:
    # Pillow compares what is rounded.
    return torch.where(images * 255 >= threshold - 0.5, 1 - images, images)


def _jitter(images: Tensor, ranges: Sequence[Range | None]) -> Tensor:
    """Changes brightness, contrast, saturation and hue by factors, and in an order, of each image's own."""
    from kornia import enhance

    changes = (
        enhance.adjust_brightness_accumulative,
        enhance.adjust_contrast_with_mean_subtraction,
        enhance.adjust_saturation_with_gray_subtraction,
        lambda batch, turns: enhance.adjust_hue(batch, 2 * math.pi * turns),
    )
    # A grey image has neither saturation nor hue to change.
    ranges = ranges if images.shape[1] == 3 else [*ranges[:2], None, None]
    factors = [None if bounds is None else _uniform(len(images), bounds) for bounds in ranges]
    order = torch.rand(len(images), len(changes)).argsort(1)
    for place in range(len(changes)):
        for which, (change, factor) in enumerate(zip(changes, factors, strict=True)):
            if factor is not None:
                images = _change(images, order[:, place] == which, change, factor)
    return images

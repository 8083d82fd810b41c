"""Affine quantisation: levels, steps, and straight-through rounding to them."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssdd_hub.errors import require
from ssdd_hub.pixel_space import PixelSpace

STEPS = (-128, 127)
"""The least and the greatest number of steps: those of 8 bits."""


class Levels(NamedTuple):
    """Affine quantisation: a stored number stands for `number * scale + offset`, by channel of images or for all."""

    scale: tuple[float, ...]
    offset: tuple[float, ...]

    @classmethod
    def of_pixels(cls, pixels: Tensor) -> "Levels":
        """Returns 256 levels of each channel of pixels `(M, C, H, W)`, which reach from 0 to 1 at least.

        So pictures look like what they show, and real images are stored as they are.
        """
        least, greatest = pixels.amin((0, 2, 3)).clamp_max(0), pixels.amax((0, 2, 3)).clamp_min(1)
        scale = (greatest - least).float() / 255
        return cls(tuple(scale.tolist()), tuple(least.float().tolist()))

    @classmethod
    def of_step(cls, step: float) -> "Levels":
        """Returns the multiples of a step."""
        return cls((float(np.float32(step)),), (0.0,))

    @classmethod
    def of_steps(cls, **steps: float) -> "dict[str, Levels]":
        """Returns the levels of each tensor that has a step, by name."""
        return {name: cls.of_step(step) for name, step in steps.items() if step}

    def in_pixels(self, space: PixelSpace) -> "Levels":
        """Returns levels of normalised images, by channel, as levels of their pixels."""
        scale = [part * std for part, std in zip(self.scale, space.std, strict=True)]
        offset = [part * std + mean for part, std, mean in zip(self.offset, space.std, space.mean, strict=True)]
        return Levels(*(tuple(np.array(part, np.float32).tolist()) for part in (scale, offset)))

    def encode(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns the nearest numbers of a type."""
        scale, offset = self._shaped(values)
        limits = torch.iinfo(dtype)
        return ((values - offset) / scale).round().clamp(limits.min, limits.max).to(dtype)

    def decode(self, numbers: Tensor) -> Tensor:
        """Returns the values, float32, of which every machine computes the same bits."""
        scale, offset = self._shaped(numbers)
        return numbers.float() * scale + offset

    def _shaped(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1,) if len(self.scale) == 1 else (-1, 1, 1)
        scale, offset = (torch.tensor(part, device=tensor.device).view(shape) for part in self)
        return scale, offset


def require_in_steps(values: Tensor, step: float, setting: str) -> None:
    """Refuses first values that no whole number of 8 bits reaches in steps of `setting`, 0 for none."""
    most = values.detach().abs().max().item() if step and values.numel() else 0.0
    holds = (STEPS[1] + 0.5) * step
    require(
        (
            not most > holds,
            f"{setting} {step:g} stores values up to {holds:.4g}, and some are {most:.4g}, as of large images: "
            f"take a {setting} of at least {1.01 * most / (STEPS[1] + 0.5):.3g}, or 0 for none",
        )
    )


def bits_of_steps(values: Tensor, step: float) -> Tensor:
    """Returns about how many bits a row of values `(n, K)` takes in steps, a scalar; 32 a value where step is 0.

    Those of column `k` are the entropy of the geometric distribution of both signs whose mean magnitude is that of
    the column, `m`: `(1 + m) log2(1 + m) - m log2(m) + m / (1 + m)`. Gradients pass the rounding as if it were not,
    and are 0 for values that are rounded to 0, which cannot take less.
    """
    if not step:
        return values.new_tensor(32.0 * values.shape[1])
    mean = (round_to_steps(values, step) / step).abs().mean(0)
    # A column of zeros takes nothing: the least number keeps its gradient, of 0 times a logarithm, finite.
    magnitude = (1 + mean) * mean.log1p() - mean * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()
    return (magnitude / math.log(2) + mean / (1 + mean)).sum()


def round_to_steps(values: Tensor, step: float) -> Tensor:
    """Returns values rounded to multiples of a step, within `STEPS` of them; the gradient is that of the identity.

    Source of the gradient: Bengio et al., arXiv 1308.3432, the straight-through estimator.
    """
    if not step:
        return values
    rounded = (values.detach() / step).round().clamp(*STEPS) * step
    return values + (rounded - values.detach()) if values.requires_grad else rounded

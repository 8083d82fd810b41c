"""Affine pixel spaces: normalisation of pixels and its inverse."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ssdd_hub.errors import InputError, require
from ssdd_hub.text import show

_LARGEST, _LEAST_STD = 1e6, 1e-6


@dataclass(frozen=True)
class PixelSpace:
    """An affine pixel space: `normalised = (pixel - mean) / std` for pixels in `[0, 1]`.

    Attributes:
        mean: One value per channel.
        std: One value per channel, above 0.

    Raises:
        SettingsError: The lengths differ, no channel is given, a std is not positive, or a number is NaN, infinite, or
            of a size with which float32 cannot compute.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        stated: tuple[Any, Any] = (self.mean, self.std)
        try:
            if any(isinstance(values, str) for values in stated):
                raise TypeError("text")
            mean, std = (tuple(float(value) for value in values) for values in stated)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"a pixel space needs a list of numbers as mean and as std; got {' and '.join(map(show, stated))}"
            ) from error
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)
        lengths = f"a pixel space needs as many means as stds, at least one; got {mean} and {std}"
        scales = f"every std of a pixel space must be above 0, from {_LEAST_STD:g} to {_LARGEST:g}; got {std}"
        means = f"every mean of a pixel space must be a number from -{_LARGEST:g} to {_LARGEST:g}; got {mean}"
        require(
            (len(mean) == len(std) > 0, lengths),
            (all(_LEAST_STD <= value <= _LARGEST for value in std), scales),
            (all(abs(value) <= _LARGEST for value in mean), means),
        )

    @classmethod
    def raw(cls, channels: int) -> "PixelSpace":
        """Returns the space in which pixels stay in `[0, 1]`."""
        return cls((0.0,) * channels, (1.0,) * channels)

    @classmethod
    def of(cls, pixels: Tensor, chunk: int = 256) -> "PixelSpace":
        """Measures the space in which pixels `(N, C, H, W)`, uint8, have mean 0 and std 1 in each channel.

        Args:
            pixels: The images.
            chunk: Images read at a time.
        """
        # Counts of the 256 levels are exact, and take a twentieth of the time of sums in float64.
        counts = torch.zeros(pixels.shape[1], 256, dtype=torch.int64, device=pixels.device)
        for part in torch.split(pixels, chunk):
            counts += torch.stack([channel.flatten().bincount(minlength=256) for channel in part.unbind(1)])
        share = counts.cpu().double() / (pixels.numel() / pixels.shape[1])
        levels = torch.arange(256, dtype=torch.float64) / 255
        mean = share @ levels
        std = (share * (levels - mean[:, None]).square()).sum(1).sqrt()
        # A constant channel has no scale of its own; 1 leaves it as it is.
        std = torch.where(std > 1e-6, std, torch.ones_like(std))
        return cls(tuple(mean.tolist()), tuple(std.tolist()))

    @property
    def channels(self) -> int:
        """Number of channels `C`."""
        return len(self.mean)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Maps pixels in `[0, 1]`, `(..., C, H, W)`, into this space."""
        mean, std = self._columns(pixels)
        # In place, since large batches cost mostly the memory that they pass through.
        return (pixels - mean).div_(std)

    def denormalise(self, images: Tensor) -> Tensor:
        """Maps images `(..., C, H, W)` of this space back to pixels; those of distilled ones may leave `[0, 1]`."""
        mean, std = self._columns(images)
        return images * std + mean

    def to_dict(self) -> dict[str, list[float]]:
        """Returns the JSON form, read back by `from_dict`."""
        return {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Any) -> "PixelSpace":
        """Reads the JSON form that `to_dict` writes; raises a `SettingsError` for anything else."""
        parts = [values.get(name) if isinstance(values, Mapping) else None for name in ("mean", "std")]
        fits = all(isinstance(part, list | tuple) and all(map(_is_number, part)) for part in parts)
        require((fits, f"a pixel space must hold mean and std, lists of finite numbers; got {str(values)[:80]}"))
        return cls(tuple(values["mean"]), tuple(values["std"]))

    def _columns(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if images.shape[-3] != self.channels:
            raise ValueError(f"this pixel space has {self.channels} channels, the images {tuple(images.shape)} do not")
        if not images.is_floating_point():
            raise ValueError(f"floating-point images are required, got {images.dtype}: divide pixels by 255 first")
        mean, std = (_column(values, images.dtype, images.device) for values in (self.mean, self.std))
        return mean, std


def _is_number(value: Any) -> bool:
    # An integer of thousands of digits has no floating-point form; true and false are numbers for Python.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


# Cached, since copying numbers to a GPU waits for all work there.
@lru_cache(maxsize=64)
def _column(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)[:, None, None]


def black_pixel(space: PixelSpace, device: torch.device | str) -> Tensor:
    """Returns a black pixel in this space, `(C, 1, 1)`."""
    return space.normalise(torch.zeros(space.channels, 1, 1, device=device))

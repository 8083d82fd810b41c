"""DCT: images are learned and stored as their low frequencies, in opponent colours, rounded to steps.

Source: Shin et al., "Frequency Domain-based Dataset Distillation", NeurIPS 2023, arXiv 2311.08819 (FreD): what is
learned are coefficients of the discrete cosine transform. There they are those of largest variance; here those of
lowest frequency, which need no list, with fewer for colour, as in JPEG, and one step for all, so that those that are
nearly 0 everywhere take nearly no bytes once they are compressed. A `rate` makes them so where that costs little.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from ssdd_hub.bounds import Count, Natural, Weight
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations.base import LearningRates, Parameterisation
from ssdd_hub.distill.parameterisations.levels import Levels, bits_of_steps, require_in_steps, round_to_steps
from ssdd_hub.errors import Check, require
from ssdd_hub.text import show

_MOST_VALUES = 2**26
_COLOURS = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))  # brightness, red against blue, green against both


@dataclass(frozen=True)
class DctSettings(LearningRates):
    """Settings of `dct`.

    Attributes:
        luma: Coefficients of the brightness of an image, the lowest frequencies; all, where there are fewer.
        chroma: Coefficients of each of its two opponent colours; grey images have none.
        step: Coefficients are rounded to its multiples, -128 to 127 of them, in the loop as they are when stored;
            gradients pass as if they were not. In units of the students' pixel space. 0 leaves them as they are.
        target_step: The same of targets.
        rate: Added to the loss is this times the logarithm of the bits that a pair takes, as `bits_of_steps` estimates
            them: what the loss would fall by if there were e times as many pairs, which a set of given bytes has where
            each takes so much less. 0 for none.
    """

    luma: Count = 256
    chroma: Natural = 64
    step: Weight = 1.5
    target_step: Weight = 0.0
    rate: Weight = 0.0

    def conflicts(self) -> Iterable[Check]:
        """Returns the check that there are steps whose number the rate can lower."""
        steps = self.step > 0 or self.target_step > 0
        yield not self.rate or steps, f"{self.option('rate')} needs a step or a target_step above 0, and both are 0"


class Dct(Parameterisation):
    """Coefficients `(M, K)`, `K = luma + 2 chroma` of colour images, and targets `(M, D)`."""

    name = "dct"
    citation = "Shin et al., NeurIPS 2023, arXiv 2311.08819"
    Settings = DctSettings
    settings: DctSettings
    coefficients: Tensor
    targets: Tensor

    def __init__(self, settings: DctSettings, shape: tuple[int, int, int], **parameters: Tensor) -> None:
        super().__init__(settings, **parameters)
        self.shape = shape

    @classmethod
    def start(cls, pairs: Pairs, settings: DctSettings) -> Self:
        """Takes the coefficients of the images; what they leave out is lost."""
        channels, height, width = pairs.images.shape[1:]
        shape, most = (channels, height, width), height * width
        chroma = min(settings.chroma, most) if channels == 3 else 0
        settings = replace(settings, luma=min(settings.luma, most), chroma=chroma)
        _check(settings, shape)
        waves = _waves(shape, settings.luma, settings.chroma).to(pairs.images)
        coefficients = pairs.images.flatten(1) @ waves.T
        require_in_steps(coefficients, settings.step, "step")
        require_in_steps(pairs.targets, settings.target_step, "target_step")
        return cls(settings, shape, coefficients=coefficients, targets=pairs.targets)

    def forward(self, rows: Tensor | None = None) -> Pairs:
        """Returns the sum of each image's waves, with its target."""
        coefficients, targets = (part if rows is None else part[rows] for part in (self.coefficients, self.targets))
        kind = (self.settings.luma, self.settings.chroma, coefficients.device, coefficients.dtype)
        waves = _waves_on(self.shape, *kind)
        images = round_to_steps(coefficients, self.settings.step) @ waves
        return Pairs(images.view(-1, *self.shape), round_to_steps(targets, self.settings.target_step))

    def penalty(self, rows: Tensor | None = None, moves_targets: bool = True) -> Tensor | None:
        """Returns the price of the bits of coefficients and targets, where they have one."""
        if not self.settings.rate:
            return None
        parts = (self.coefficients, self.targets if moves_targets else self.targets.detach())
        coefficients, targets = (part if rows is None else part[rows] for part in parts)
        bits = bits_of_steps(coefficients, self.settings.step) + bits_of_steps(targets, self.settings.target_step)
        # Of a set of zeros the logarithm has no gradient.
        return self.settings.rate * bits.clamp_min(1.0).log()

    def __len__(self) -> int:
        """Returns `M`."""
        return len(self.targets)

    def decoding(self) -> dict[str, Any]:
        """Returns the numbers of coefficients, the steps and the shape of an image."""
        names = ("luma", "chroma", "step", "target_step")
        return {**{name: getattr(self.settings, name) for name in names}, "shape": list(self.shape)}

    def levels(self) -> dict[str, Levels]:
        """Returns the multiples of the steps of coefficients and targets."""
        return Levels.of_steps(coefficients=self.settings.step, targets=self.settings.target_step)

    @classmethod
    def from_columns(cls, columns: Mapping[str, Tensor], args: Mapping[str, Any]) -> Self:
        """Returns the parameterisation that `columns` and `decoding` described."""
        settings = DctSettings(**{name: value for name, value in args.items() if name != "shape"})
        channels, height, width = cls.shown_shape({}, args)
        return cls(settings, (channels, height, width), **columns)

    @classmethod
    def shown_shape(cls, shapes: Mapping[str, tuple[int, ...]], args: Mapping[str, Any]) -> tuple[int, ...]:
        """Returns the shape `(C, H, W)` that the arguments state, with numbers of coefficients that fit it."""
        stated = args["shape"]
        fits = isinstance(stated, list) and len(stated) == 3 and all(type(side) is int and side > 0 for side in stated)
        require((fits, f"shape must be channels, height and width; got {show(stated)}"))
        shape = (stated[0], stated[1], stated[2])
        _check(DctSettings(**{name: value for name, value in args.items() if name != "shape"}), shape)
        return shape


def _check(settings: DctSettings, shape: tuple[int, int, int]) -> None:
    """Refuses images that cannot be stored so, and numbers of coefficients that they do not have."""
    channels, pixels = shape[0], shape[1] * shape[2]
    named = {"luma": settings.luma, "chroma": settings.chroma}
    size = channels * pixels * (settings.luma + (channels - 1) * settings.chroma)
    require(
        (channels in (1, 3), f"dct is for grey or RGB images, got {channels} channels"),
        *(
            (count <= pixels, f"{name} of dct must be at most {pixels}, the pixels of an image; got {count}")
            for name, count in named.items()
        ),
        (
            size <= _MOST_VALUES,
            f"dct computes with pixels times coefficients, at most {_MOST_VALUES}; got {size}: use smaller images, or "
            "fewer coefficients",
        ),
    )


@lru_cache(maxsize=8)
def _waves(shape: tuple[int, int, int], luma: int, chroma: int) -> Tensor:
    """Returns the orthonormal waves `(K, C H W)`, float64, those of brightness first, low frequencies first."""
    channels, height, width = shape
    across = [_cosines(side) for side in (height, width)]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    # By frequency in waves per side; of equal ones the flatter first, so that the order is the same everywhere.
    keys = (rows / height).square() + (columns / width).square()
    order = sorted(range(height * width), key=lambda i: (round(keys.flatten()[i].item(), 9), i))
    counts = [luma] if channels == 1 else [luma, chroma, chroma]
    colours = torch.tensor([[1.0]] if channels == 1 else _COLOURS, dtype=torch.float64)
    colours = colours / colours.square().sum(1, keepdim=True).sqrt()
    waves = []
    for colour, count in zip(colours, counts, strict=True):
        chosen = torch.tensor(order[:count], dtype=torch.int64)
        planes = across[0][chosen // width][:, :, None] * across[1][chosen % width][:, None]  # (count, H, W)
        waves.append((colour[None, :, None, None] * planes[:, None]).flatten(1))
    return torch.cat(waves)


@lru_cache(maxsize=8)
def _waves_on(shape: tuple[int, int, int], luma: int, chroma: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    # Kept, since every step needs them.
    return _waves(shape, luma, chroma).to(device, dtype)


def _cosines(size: int) -> Tensor:
    """Returns the orthonormal cosines `(frequency, place)` of the DCT-II."""
    places = torch.arange(size, dtype=torch.float64) + 0.5
    waves = (torch.arange(size, dtype=torch.float64)[:, None] * places * math.pi / size).cos()
    return waves * torch.where(torch.arange(size) == 0, 1.0, 2.0)[:, None].to(torch.float64).div(size).sqrt()

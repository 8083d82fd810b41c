"""Pyramid: images as sums of layers from one pixel to full size, in decorrelated colours, through a sigmoid.

Source: Cazenavette, Torralba and Sitzmann, NeurIPS 2025, arXiv 2511.16674 (LGM), whose released code begins with
one pixel, adds a layer of twice the side after every 200 steps up to the full size, and then optimises anew. There
the layers are noise; here they begin with what they show of the first images, and those added later are noise.

What is stored is what they show. The layers have 4/3 as many values as the pixels, and need more than 8 bits each:
the 224 pixels a side of a colour image are 150,528 bytes before PNG, its layers in float16 401,408.
"""

from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import Self

from ssdd_hub.bounds import Natural, at_least, at_most
from ssdd_hub.data.tiles import sample
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations.base import GIVEN, LearningRates, Parameterisation
from ssdd_hub.distill.parameterisations.pixels import Pixels
from ssdd_hub.errors import Check, require
from ssdd_hub.seeds import generator

# Principal directions of the colours of CIFAR-100's 50,000 images, in columns, each as long as its std; the first, of
# brightness, is then of length 1.
_COLOURS = ((0.56, 0.25, 0.06), (0.58, -0.01, -0.13), (0.59, -0.23, 0.07))
_LEAST = 1 / 1020  # of a pixel at the start, a quarter of a level of 8 bits: a sigmoid does not reach 0


@dataclass(frozen=True)
class PyramidSettings(LearningRates):
    """Settings of `pyramid`.

    Attributes:
        every: Steps after which a layer is added, and the optimiser begins anew; 0 for all layers from the start.
        seed: Of the first values of added layers.
        black: A black pixel in the space of the images, a value for each channel; the recipe's. None for 0.
        white: A white pixel likewise. None for 1.
    """

    every: Natural = 200
    seed: Annotated[int, at_least(0), at_most(2**32 - 1)] = 0
    black: list[float] | None = field(default=None, metadata=GIVEN)
    white: list[float] | None = field(default=None, metadata=GIVEN)


class Pyramid(Parameterisation):
    """Layers of 1, 2, 4, ... pixels a side and of the size of the image, one after another `(M, C, L)`, and targets.

    Of `n` layers, those that are added have values from `N(0, 1) / n`, and the others are multiplied by `(n - 1) / n`,
    so that the sum keeps its size.
    """

    name = "pyramid"
    citation = "Cazenavette et al., NeurIPS 2025, arXiv 2511.16674"
    Settings = PyramidSettings
    settings: PyramidSettings
    layers: Tensor
    targets: Tensor
    count: Tensor

    def __init__(self, settings: PyramidSettings, size: tuple[int, int], count: int, **parameters: Tensor) -> None:
        super().__init__(settings, **parameters)
        self.size = size
        # Always on the CPU, since no step should wait for a GPU to read it.
        self.register_buffer("count", torch.tensor(count))

    @classmethod
    def start(cls, pairs: Pairs, settings: PyramidSettings) -> Self:
        """Takes what the first layers show of the images: their mean colours, or all but what a sigmoid leaves out."""
        channels, height, width = pairs.images.shape[1:]
        require((channels in (1, 3), f"pyramid is for grey or RGB images, got {channels} channels"))
        sizes = _sizes(height, width)
        black, white = _ends(settings, pairs.images)
        pixels = ((pairs.images.detach() - black) / (white - black)).clamp(_LEAST, 1 - _LEAST)
        colours = _colours(pairs.images)
        rest, layers = torch.einsum("dc,nchw->ndhw", torch.linalg.inv(colours), pixels.logit() / 2), list[Tensor]()
        count = 1 if settings.every else len(sizes)
        for number, size in enumerate(sizes):
            layer = functional.adaptive_avg_pool2d(rest, size)
            layers.append((layer if number < count else torch.zeros_like(layer)).flatten(2))
            rest = rest - _enlarge(layer, (height, width))
        return cls(settings, (height, width), count, layers=torch.cat(layers, 2), targets=pairs.targets)

    def forward(self, rows: Tensor | None = None) -> Pairs:
        """Returns the sums of the layers that there are, as colours between black and white, with the targets."""
        layers, targets = (part if rows is None else part[rows] for part in (self.layers, self.targets))
        shown = sum(_enlarge(layer, self.size) for layer in self._split(layers)[: int(self.count)])
        pixels = (2 * torch.einsum("dc,nchw->ndhw", _colours(layers), shown)).sigmoid()
        black, white = _ends(self.settings, layers)
        return Pairs(black + (white - black) * pixels, targets)

    def __len__(self) -> int:
        """Returns `M`."""
        return len(self.targets)

    @torch.no_grad()
    def grow(self, step: int) -> bool:
        """Adds a layer after every so many steps."""
        every, count, layers = self.settings.every, int(self.count), self._split(self.layers)
        if not every or count >= min(1 + step // every, len(layers)):
            return False
        for layer in layers[:count]:
            layer.mul_(count / (count + 1))
        added = layers[count]
        noise = torch.randn(added.shape, generator=generator(self.settings.seed, "layer of a pyramid", count))
        added.copy_(noise / (count + 1))
        self.count += 1
        return True

    def steps_check(self, steps: int) -> Check:
        """Returns whether at least one step sees all layers."""
        every, layers = self.settings.every, len(_sizes(*self.size))
        least, reached = 1 + every * (layers - 1), 2 ** ((steps - 1) // every) if every else max(self.size)
        grows = f"pyramid adds a layer every {every} steps, and images of {max(self.size)} px have {layers}"
        return steps >= least, (
            f"{grows}: distiller.steps must be at least {least}, got {steps}, ending at {reached} px: raise them, or "
            "lower every in parameterisation.args (0: all layers from the start)"
        )

    def stored(self) -> Parameterisation:
        """Returns the pixels of the images that the layers show."""
        with torch.no_grad():
            return Pixels.start(self().detached(), self.settings)

    def _split(self, layers: Tensor) -> list[Tensor]:
        """Returns each layer, `(n, C, h, w)`, a view."""
        sizes = _sizes(*self.size)
        parts = torch.split(layers, [height * width for height, width in sizes], 2)
        return [part.view(*part.shape[:2], *size) for part, size in zip(parts, sizes, strict=True)]


def _sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Returns height and width of each layer."""
    sides = [1]
    while sides[-1] < max(height, width):
        sides.append(2 * sides[-1])
    return [(min(side, height), min(side, width)) for side in sides]


def _enlarge(layer: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns a layer at the size of the images, bilinearly."""
    places = zip(size, layer.shape[-2:], strict=True)
    return layer if layer.shape[-2:] == size else sample(layer, *(_centres(full, part) for full, part in places))


def _centres(full: int, part: int) -> Tensor:
    """Returns where the centres of `full` pixels are among `part` larger ones, in these from the first centre."""
    return (torch.arange(full, dtype=torch.float64) + 0.5) * (part / full) - 0.5


def _colours(images: Tensor) -> Tensor:
    return images.new_tensor(_COLOURS if images.shape[1] == 3 else [[1.0]])


def _ends(settings: PyramidSettings, images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a black and a white pixel, `(C, 1, 1)`, or `(1, 1, 1)` for all channels."""
    found = (images.new_tensor(part)[:, None, None] for part in (settings.black or [0.0], settings.white or [1.0]))
    black, white = found
    return black, white

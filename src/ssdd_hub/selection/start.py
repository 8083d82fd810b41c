"""The first images of a distilled set: real ones, or noise."""

import torch
from torch import Tensor

from ssdd_hub.seeds import derive_seed, generator
from ssdd_hub.selection.methods import CHOICES, SelectionSettings, choose_rows, draw_noise
from ssdd_hub.selection.source import Source

NOISE = "noise"
INITS = (*CHOICES, NOISE)


def start_from(
    init: str, source: Source, count: int, seed: int, settings: SelectionSettings, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns the first `count` images, their targets and their places, by one of `INITS` and the seed of a run.

    Images are `(M, C, H, W)`, of type `dtype`, in `[0, 1]` but for noise; targets are `(M, D)`; places are `(M,)`,
    those in the source's bank, or None for noise.
    """
    first_images = derive_seed(seed, "first images")
    if init == NOISE:
        images, targets = draw_noise(source, count, first_images)
        return source.pixel_space.denormalise(images).to(dtype), targets, None
    if init == "random":
        # Not by `choose_rows`, so that earlier settings still start from the same images.
        rows = torch.randperm(len(source.bank), generator=generator(seed, "first images"))[:count]
    else:
        rows = choose_rows(init, source, count, first_images, settings)
    return source.bank.pixels[rows].to(dtype) / 255, source.targets[rows], rows

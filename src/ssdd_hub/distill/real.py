"""The real data as parameterisations start from it."""

import torch
from accelerate.utils import broadcast
from torch import Tensor

from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations.base import Real
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.seeds import generator
from ssdd_hub.selection.methods import predict_targets
from ssdd_hub.selection.source import Source


def real_of(source: Source, space: PixelSpace, pairs: Pairs) -> Real:
    """Returns the data of a source in the space of the first pairs; every process calls it, and has the same data."""
    like = pairs.images

    def draw(count: int) -> Pairs:
        rows = torch.randperm(len(source.bank), generator=generator(0, "real images of a start"))[:count]
        found = Pairs(space.normalise(source.bank.pixels[rows] / 255), source.targets[rows])
        # What was computed on several devices may differ in its last bits.
        return Pairs(*(broadcast(part.contiguous()) for part in found.to(like.device, like.dtype)))

    def teach(images: Tensor) -> Tensor:
        found = predict_targets(source, space.denormalise(images).clamp(0, 1))
        shared: Tensor = broadcast(found.to(like).contiguous())
        return shared

    return Real(draw, teach if source.teacher else None)

"""The first images of a distilled set: real ones, averages or tiled crops of some, or noise."""

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ssdd_hub.runs.estimate import Stage
from ssdd_hub.seeds import derive_seed, generator
from ssdd_hub.selection.clusters import choose_evenly
from ssdd_hub.selection.methods import (
    OF_REAL,
    RDED,
    SelectionSettings,
    choose_rows,
    draw_classes,
    draw_noise,
    needs_expert,
    predict_targets,
    targets_of,
)
from ssdd_hub.selection.rded import tile_crops
from ssdd_hub.selection.source import Source

NOISE, MIXED = "noise", "mixed"
INITS = (*OF_REAL, NOISE, MIXED)
PARTS = 4  # real images in each of a mixed start
_TIMED, _CROPPED = 2000, 200  # images of a part that a choice is timed on, and of one that are cropped


def time_start(init: str, source: Source, count: int, settings: SelectionSettings) -> Stage:
    """Times the choice of the first images by one of `INITS`, on a part of a source with any targets."""
    name = "start"
    if init in ("random", MIXED):
        return Stage(name, 0, 0.0)
    # Crops take the time, however few are tiled.
    count, least = (1, _CROPPED) if init == RDED else (count, _TIMED)
    size, few = len(source.bank), min(len(source.bank), max(least, count))
    targets = torch.randn(few, source.targets[:1].shape[1])
    part = replace(source, bank=source.bank.subset(torch.arange(few)), targets=targets)

    def seconds(**changed: Any) -> float:
        started = time.perf_counter()
        start_from(init, part, count, 0, replace(settings, max_images=None, tile_factor=1, **changed))
        return time.perf_counter() - started

    if not needs_expert(init, labelled=source.classes is not None):
        candidates = min(size, settings.max_images or size)
        return Stage(name, 0, seconds() * (1 if init == NOISE else candidates / few))
    # Of each expert, the steps, and one pass over all images.
    short, longer = (seconds(experts=1, expert_steps=steps) for steps in (2, 7))
    each = max(0.0, longer - short) / 5
    return Stage(name, settings.experts, settings.experts * (settings.expert_steps * each + short * size / few))


def start_from(
    init: str, source: Source, count: int, seed: int, settings: SelectionSettings, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns the first `count` images, their targets and their places, by one of `INITS` and the seed of a run.

    Images are `(M, C, H, W)`, of type `dtype`, in `[0, 1]` but for noise; targets are `(M, D)`; places are `(M,)`,
    those in the source's bank, `(M, PARTS)` for averages of random images, as many for tiled crops, or None for noise.
    Where the targets are class labels, there are equally many of each class, as far as it has images, and averages and
    crops are of one class.
    """
    first_images, labelled = derive_seed(seed, "first images"), source.classes is not None
    if init == NOISE:
        images, targets = draw_noise(source, count, first_images)
        return source.pixel_space.denormalise(images).to(dtype), targets, None
    if init == MIXED:
        drawn, classes = generator(seed, "first images"), draw_classes(source, count) if labelled else None
        groups = [None] * count if classes is None else classes.tolist()
        rows = torch.stack([_draw_parts(source, drawn, number) for number in groups])
        images = torch.stack([source.bank.pixels[each].to(dtype).mean(0) / 255 for each in rows])
        return images, predict_targets(source, images) if classes is None else targets_of(source, classes), rows
    if init == RDED:
        tiled, targets, rows = tile_crops(source, count, first_images, settings)
        return tiled.to(dtype) / 255, targets, rows
    if settings.balance and source.classes is None:
        rows = choose_evenly(init, source, count, seed, settings)
    elif init == "random" and not labelled:
        # Not by `choose_rows`, so that earlier settings still start from the same images.
        rows = torch.randperm(len(source.bank), generator=generator(seed, "first images"))[:count]
    else:
        rows = choose_rows(init, source, count, first_images, settings)
    return source.bank.pixels[rows].to(dtype) / 255, source.targets[rows], rows


def _draw_parts(source: Source, drawn: torch.Generator, number: float | None) -> Tensor:
    """Returns the images `(PARTS,)` of an average, of a class where there are any, some twice in a small one."""
    if source.classes is None or number is None:
        return torch.randperm(len(source.bank), generator=drawn)[:PARTS]
    own = torch.eq(source.classes, number).nonzero()[:, 0]
    return own[torch.randperm(len(own), generator=drawn).repeat(PARTS)[:PARTS]]

"""RDED: tiled crops of real images, those in which a network recognises best what their image shows.

Source: Sun et al., "On the Diversity and Realism of Distilled Dataset: An Efficient Dataset Distillation Paradigm",
CVPR 2024. There 5 crops of each of 300 images of a class are drawn, those of the lowest cross-entropy to the class, as
a teacher sees it, are kept, and tiled 2 x 2 to an image, with soft labels of the teacher; at 32 pixels images are
single crops, `tile_factor: 1`. The released code shows the teacher crops amid zeros; here they are enlarged.

With class labels, the network is trained on all images as other experts are, its outputs are taken for logits, and the
class is the target. Without, it is the teacher, and a crop is the better the less its target differs from that of its
image; images are tiled in a drawn order, and the teacher gives targets of tiled images. All images are cropped that
`max_images` leaves. Shares of the crops, squares of a quarter of the area and more, are our own.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from ssdd_hub.data.tiles import enlarge
from ssdd_hub.errors import InputError, require
from ssdd_hub.seeds import generator
from ssdd_hub.selection.methods import (
    SelectionSettings,
    draw_candidates,
    draw_classes,
    predict_targets,
    targets_of,
    train_expert,
)
from ssdd_hub.selection.source import Source, SourcePairs

LEAST_AREA = 0.25  # of an image, in a crop
_IMAGES = 64  # whose crops are in memory at a time


def tile_crops(source: Source, count: int, seed: int, settings: SelectionSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Returns tiled images `(M, C, H, W)`, uint8, their targets `(M, D)`, and the source images of each, `(M, f * f)`.

    Tiles are in rows from the top left. No source image gives two crops.

    Raises:
        InputError: There are too few images, of a class or at all, or tiles of this factor do not fit into an image.
    """
    factor, rows = settings.tile_factor, draw_candidates(source, seed, settings)
    each, shape = factor * factor, source.bank.pixels.shape[1:]
    fits = shape[1] % factor == 0 == shape[2] % factor
    require((fits, f"selection.tile_factor must divide the {shape[1]} x {shape[2]} pixels of images, got {factor}"))
    groups, classes = [(rows, torch.arange(count), "")], None
    if source.classes is not None:
        classes, own = draw_classes(source, count), source.classes[rows]
        groups = [
            (rows[own == n], (classes == n).nonzero()[:, 0], f" of class {n}") for n in torch.unique(classes).tolist()
        ]
    for found, made, which in groups:
        if len(found) < len(made) * each:
            raise InputError(
                f"{len(made)} images{which} of {each} tiles each take as many real ones, and there are {len(found)} "
                "to choose from: select fewer, lower selection.tile_factor, or raise selection.max_images"
            )
    boxes = draw_boxes(len(rows), settings.tile_crops, shape[1], shape[2], seed)
    errors, best = judge_crops(source, rows, boxes, observer(source, seed, settings), factor)
    images, places = torch.empty(count, *shape, dtype=torch.uint8), torch.empty(count, each, dtype=torch.int64)
    of_row = torch.empty(len(source.bank), dtype=torch.int64)
    of_row[rows] = torch.arange(len(rows))
    for number, (found, made, _) in enumerate(groups):
        numbers = of_row[found]
        chosen = numbers[errors[numbers].argsort(stable=True)[: len(made) * each]]
        chosen = chosen[torch.randperm(len(chosen), generator=generator(seed, "selection/order of tiles", number))]
        places[made] = rows[chosen].view(len(made), each)
        for image, parts in zip(made.tolist(), chosen.view(len(made), each), strict=True):
            crops = crop(source.bank.pixels[rows[parts]], boxes[parts, best[parts]], factor)
            images[image] = crops.view(factor, factor, *crops.shape[1:]).permute(2, 0, 3, 1, 4).reshape(shape)
    found = predict_targets(source, images / 255) if classes is None else targets_of(source, classes)
    return images, found, places


def draw_boxes(count: int, crops: int, height: int, width: int, seed: int) -> Tensor:
    """Draws square crops `(count, crops, 3)`, int64: top, left and side, of uniform area and place."""
    drawn = torch.rand(3, count, crops, generator=generator(seed, "selection/crops"))
    side = (min(height, width) * (LEAST_AREA + (1 - LEAST_AREA) * drawn[0]).sqrt()).round().long().clamp_min(1)
    places = [(part * (size - side + 1)).long() for part, size in zip(drawn[1:], (height, width), strict=True)]
    return torch.stack([*places, side], 2)


def crop(pixels: Tensor, boxes: Tensor, factor: int) -> Tensor:
    """Returns crops `(n, C, H / factor, W / factor)` of images, both uint8, by boxes `(n, 3)`, resized bilinearly."""
    size = [side // factor for side in pixels.shape[-2:]]
    parts = [
        functional.interpolate(
            image[None, :, top : top + side, left : left + side].float(), size, mode="bilinear", antialias=True
        )
        for image, (top, left, side) in zip(pixels, boxes.tolist(), strict=True)
    ]
    return torch.cat(parts).round().clamp(0, 255).to(torch.uint8)


def judge_crops(
    source: Source, rows: Tensor, boxes: Tensor, observe: Callable[[Tensor, Tensor], Tensor], factor: int
) -> tuple[Tensor, Tensor]:
    """Returns the least error of the crops of each image, `(N,)`, float64, and which crop has it, `(N,)`.

    Args:
        source: The images.
        rows: Those that are cropped, `(N,)`.
        boxes: Their crops, `(N, n, 3)`.
        observe: Returns the error of each of some crops, as large as images, pixels in `[0, 1]`, of source images.
        factor: Crops are seen as coarse as they are tiled.
    """
    found = list[Tensor]()
    for part, places in zip(torch.split(rows, _IMAGES), torch.split(boxes, _IMAGES), strict=True):
        of = part.repeat_interleave(boxes.shape[1])
        crops = enlarge(crop(source.bank.pixels[of], places.flatten(0, 1), factor) / 255, factor)
        found.append(observe(crops, of).double().cpu().view(len(part), -1))
    errors = torch.cat(found)
    if not errors.isfinite().all():
        raise InputError("the network that judges crops diverges: lower --selection.expert-learning-rate")
    least = errors.min(1)
    return least.values, least.indices


def observer(source: Source, seed: int, settings: SelectionSettings) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns what gives the error of crops; see `judge_crops`."""
    if source.classes is None:
        return lambda crops, of: (predict_targets(source, crops) - source.targets[of].cpu()).square().mean(1)
    pairs, classes = SourcePairs(source.bank, source.targets, source.pixel_space, source.device), source.classes
    experts = [train_expert(source, pairs, seed, settings, number) for number in range(settings.experts)]

    def cross_entropy(crops: Tensor, of: Tensor) -> Tensor:
        seen, wanted = source.pixel_space.normalise(crops).to(source.device), classes[of].to(source.device)
        with torch.no_grad():
            found = [functional.cross_entropy(expert(seen), wanted, reduction="none") for expert in experts]
        return torch.stack(found).mean(0)

    return cross_entropy

"""Similarity of distilled images to real ones: what a set still shows of its source, measured for its card."""

from typing import Any

import torch
from torch import Tensor

ALIKE = 0.8
"""Correlation above which a person sees the same picture in both images."""
_CHUNK = 2**22  # values of the source at once, of which some copies are made
_MOST_VALUES = (
    2**34
)  # values of the source that are read: of larger ones images are left out evenly, which takes minutes


def correlations(images: Tensor, others: Tensor) -> Tensor:
    """Returns Pearson's correlation of the pixels of each image with its counterpart, `(M,)`; 0 for flat images.

    Args:
        images: `(M, C, H, W)`, floats.
        others: `(M, C, H, W)`, floats or uint8, in any linear scale: correlation ignores brightness and contrast.
    """
    return (standardise(images) * standardise(others)).sum(1)


def nearest(images: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the highest correlation of each image with any of the source, `(M,)`, and which one it is, `(M,)`.

    Args:
        images: `(M, C, H, W)`, floats.
        source: `(N, C, H, W)`, floats or uint8; read in chunks.
    """
    flat = standardise(images)
    best, place = torch.full((len(flat),), -2.0), torch.zeros(len(flat), dtype=torch.int64)
    step = max(1, _CHUNK // flat.shape[1])
    for start in range(0, len(source), step):
        values, indices = (flat @ standardise(source[start : start + step]).T).max(1)
        better = values > best
        best, place = torch.where(better, values, best), torch.where(better, indices + start, place)
    return best, place


def measure_similarity(images: Tensor, source: Tensor, starts: Tensor | None = None) -> dict[str, Any]:
    """Returns what a card states of the similarity of a set to the real images that it was made from, as JSON.

    Args:
        images: `(M, C, H, W)`, the images of the set, in any linear scale.
        source: `(N, C, H, W)`, the source.
        starts: `(M, C, H, W)`, the real images that distillation started from; None where it started from noise.
    """
    every = -(-source.numel() // _MOST_VALUES)
    best, _ = nearest(images, source[::every])
    found: dict[str, Any] = {"measure": "correlation of pixels", "searched": len(source[::every])}
    if starts is None:
        return {**found, "nearest": summarise(best)}
    own = correlations(images, starts)
    # The starts are images of the source, though they may be left out.
    return {**found, "nearest": summarise(torch.maximum(best, own)), "start": summarise(own)}


def summarise(values: Tensor) -> dict[str, Any]:
    """Returns median, maximum and how many correlations are above `ALIKE`, of how many."""
    return {
        "median": round(values.median().item(), 4),
        "max": round(values.max().item(), 4),
        f"above_{ALIKE}": int((values > ALIKE).sum()),
        "of": len(values),
    }


def standardise(images: Tensor) -> Tensor:
    """Returns unit vectors `(n, C H W)` of images `(n, C, H, W)`, whose products are the correlations of pixels."""
    flat = images.detach().float().cpu().flatten(1)
    return torch.nn.functional.normalize(flat - flat.mean(1, keepdim=True))

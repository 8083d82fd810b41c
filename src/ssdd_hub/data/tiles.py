"""Bilinear up-sampling of images by a whole factor or at any places, and down-sampling by means."""

import torch
from torch import Tensor
from torch.nn import functional


def enlarge(tiles: Tensor, factor: int) -> Tensor:
    """Returns images `(..., H, W)` enlarged `factor` times in each direction, bilinearly, as `(..., H f, W f)`.

    The values are those of `torch.nn.functional.interpolate(mode="bilinear")`, by sums of two products each: every
    machine computes the same bits, and the gradient adds in a fixed order, on a GPU too.
    """
    return tiles if factor == 1 else _stretch(_stretch(tiles, factor, -2), factor, -1)


def _stretch(tiles: Tensor, factor: int, dim: int) -> Tensor:
    """Enlarges one dimension: each pixel becomes `factor` points, between its centre and those of its neighbours."""
    size = tiles.shape[dim]
    before = torch.cat([tiles.narrow(dim, 0, 1), tiles.narrow(dim, 0, size - 1)], dim)
    after = torch.cat([tiles.narrow(dim, 1, size - 1), tiles.narrow(dim, size - 1, 1)], dim)
    points = []
    for point in range(factor):
        place = (point + 0.5) / factor - 0.5  # of the point, from the centre of its pixel, in pixels
        neighbour, weight = (before, -place) if place < 0 else (after, place)
        points.append(tiles * (1 - weight) + neighbour * weight if weight else tiles)
    return torch.stack(points, dim).flatten(*((-3, -2) if dim == -2 else (-2, -1)))


def shrink(images: Tensor, factor: int) -> Tensor:
    """Returns images `(n, C, H, W)` shrunk `factor` times by the mean of each square; the sides must be multiples."""
    return images if factor == 1 else functional.avg_pool2d(images, factor)


def sample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Returns the values of images `(n, C, H, W)` at all pairs of rows and columns, bilinearly, `(n, C, h, w)`.

    Places are in pixels from the centre of the first one, `(h,)` and `(w,)`, or `(n, h)` and `(n, w)`, other ones for
    each image; those beyond the centre of the last pixel are moved to it. Products of matrices compute it, whose
    gradient adds in a fixed order, on a GPU too.
    """
    return _weights(rows, images, -2) @ images @ _weights(columns, images, -1).mT


def _weights(places: Tensor, images: Tensor, dim: int) -> Tensor:
    """Returns the share of each pixel along a dimension in the value at each place, `(..., h, H)`."""
    size = images.shape[dim]
    places = places.to(images)[..., None].clamp(0, size - 1)
    shares = (1 - (places - torch.arange(size).to(images)).abs()).clamp_min(0)
    return shares if shares.ndim == 2 else shares[:, None]

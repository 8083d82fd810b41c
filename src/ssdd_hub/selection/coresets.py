"""Core sets: few points that represent many, by k-means, greedy k-center or herding."""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from ssdd_hub.errors import InputError
from ssdd_hub.seeds import derive_seed, generator

MOST_HELD = 3 * 2**28  # bytes of points that are kept in memory; larger matrices are read in parts, repeatedly
# Bytes of a part, and points at most: their distances to all centres are in memory too.
_PART, _MOST_IN_PART = 2**25, 4096
_NEAREST = 16  # candidates for each centre, since other centres may have taken some


class Points:
    """A matrix `(N, D)`, float32, that is read in parts, and held in memory where it fits.

    `read` returns `(n, ...)`, flattened here, for some of the indices `rows (N,)`. A point with NaN or infinite values
    raises an `InputError` when it is read.
    """

    def __init__(self, rows: Tensor, read: Callable[[Tensor], Tensor]) -> None:
        self._rows, self._read = rows, read
        self._held: Tensor | None = None
        self._width = self[:1].shape[1]
        self._capacity = max(1, MOST_HELD // (4 * self._width))  # points
        self._size = min(_MOST_IN_PART, max(1, _PART // (4 * self._width)))
        if len(rows) <= self._capacity:
            self._held = self._gather(torch.arange(len(rows)))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, chosen: Tensor | slice) -> Tensor:
        """Returns some points, `(n, D)`; those of a slice may be a view."""
        if self._held is not None:
            return self._held[chosen]
        points = self._read(self._rows[chosen]).float().flatten(1)
        if not points.isfinite().all():
            raise InputError("the targets hold NaN or infinite values: compute them again with a sound teacher")
        return points

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """Yields all points in parts, each with its slice."""
        for start in range(0, len(self), self._size):
            part = slice(start, min(start + self._size, len(self)))
            yield part, self[part]

    def sample(self, count: int, seed: int) -> Tensor:
        """Returns all points if they are held, otherwise as many as fit into memory, at least `count`, by seed."""
        if self._held is not None:
            return self._held
        order = torch.randperm(len(self), generator=generator(seed, "coreset/sample"))
        return self._gather(order[: max(count, self._capacity)].sort().values)

    def _gather(self, chosen: Tensor) -> Tensor:
        # In parts, since reading and transforming makes copies.
        gathered = torch.empty(len(chosen), self._width)
        for part, found in zip(torch.split(chosen, self._size), torch.split(gathered, self._size), strict=True):
            found.copy_(self[part])
        return gathered

    def distances(self, centre: Tensor) -> Tensor:
        """Returns the distance of each point to one, `(N,)`; exactly 0 to its equals."""
        exact = "donot_use_mm_for_euclid_dist"
        return torch.cat([torch.cdist(part, centre[None], compute_mode=exact)[:, 0] for _, part in self.parts()])


def kmeans(points: Points, count: int, seed: int, exact: int, iterations: int, batch_size: int) -> Tensor:
    """Chooses the point nearest to each centre of k-means, centre by centre, without replacement.

    Returns indices `(count,)`, none twice; see `find_centres`.
    """
    return _nearest_free(points, find_centres(points, count, seed, exact, iterations, batch_size))


def find_centres(
    points: Points, count: int, seed: int, exact: int = 10_000, iterations: int = 100, batch_size: int = 1024
) -> Tensor:
    """Returns the centres `(count, D)` of k-means, of which some are equal where fewer points differ.

    Up to `exact` points, all count in each of at most `iterations` passes; of more, batches. Where the points do not
    fit into memory, the centres are those of a sample that does.
    """
    sample = points.sample(count, seed)
    # In place, since a copy may take too much memory.
    shared: dict[str, Any] = {"n_clusters": count, "n_init": 1, "max_iter": iterations}
    shared["random_state"] = derive_seed(seed, "coreset/k-means") % 2**32
    if len(sample) <= exact:
        clusters = KMeans(copy_x=False, **shared)
    else:
        start = min(len(sample), 3 * max(batch_size, count))
        clusters = MiniBatchKMeans(batch_size=batch_size, init_size=start, compute_labels=False, **shared)
    # One thread, since several add up in any order. Equal points give fewer clusters, of which a warning tells.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        clusters.fit(sample.numpy())
    return torch.from_numpy(clusters.cluster_centers_).float()


def nearest_centres(points: Points, centres: Tensor) -> Tensor:
    """Returns for each point the index of the nearest of the centres `(K, D)`, `(N,)`."""
    offset = centres.mean(0)
    return torch.cat([torch.cdist(part - offset, centres - offset).argmin(1) for _, part in points.parts()])


def _nearest_free(points: Points, centres: Tensor) -> Tensor:
    """Returns for each centre, in order, the nearest point that no earlier one has, `(M,)`."""
    chosen: list[int] = []
    free = torch.ones(len(points), dtype=torch.bool)
    while len(chosen) < len(centres):
        for nearest in _nearest(points, centres[len(chosen) :], free).tolist():
            point = next((point for point in nearest if free[point]), None)
            if point is None:
                break
            free[point] = False
            chosen.append(point)
    return torch.tensor(chosen)


def _nearest(points: Points, centres: Tensor, free: Tensor) -> Tensor:
    """Returns for each centre some of its nearest free points, nearest first: `(M, n)`, `n` at most `_NEAREST`."""
    number, offset = min(_NEAREST, int(free.sum())), centres.mean(0)
    least, nearest = torch.empty(len(centres), 0), torch.empty(len(centres), 0, dtype=torch.int64)
    for part, some in points.parts():
        # A large common offset would cost the matrix product its last digits.
        distances = torch.cdist(centres - offset, some - offset)
        distances[:, ~free[part]] = math.inf
        found, columns = distances.topk(min(number, len(some)), largest=False)
        least, nearest = torch.cat([least, found], 1), torch.cat([nearest, columns + part.start], 1)
        least, order = least.topk(min(number, least.shape[1]), largest=False)
        nearest = nearest.gather(1, order)
    return nearest


def kcenter(points: Points, count: int, seed: int) -> Tensor:
    """Chooses one point by seed, then repeatedly the one farthest from all chosen: greedy k-center.

    Sener and Savarese, ICLR 2018, arXiv 1708.00489, algorithm 1. Returns indices `(count,)`, in order of choice.
    """
    chosen = [int(torch.randint(len(points), (1,), generator=generator(seed, "coreset/first centre")))]
    farness = torch.full((len(points),), math.inf)
    while len(chosen) < count:
        farness = farness.minimum(points.distances(points[chosen[-1] : chosen[-1] + 1][0]))
        # Below the 0 of points equal to a chosen one.
        farness[chosen[-1]] = -1
        chosen.append(int(farness.argmax()))
    return torch.tensor(chosen)


def herding(points: Points, count: int) -> Tensor:
    """Chooses repeatedly the point that brings the mean of the chosen nearest to the mean of all: herding.

    Welling (ICML 2009) takes the greatest inner product, which is the same for points of one length. This takes the
    least distance, without replacement, as Rebuffi et al. (CVPR 2017, arXiv 1611.07725, algorithm 4). Returns indices
    `(count,)`, in order of choice.
    """
    mean = torch.stack([part.double().sum(0) for _, part in points.parts()]).sum(0) / len(points)
    wanted, chosen = mean.clone(), list[int]()
    taken = torch.zeros(len(points), dtype=torch.bool)
    for _ in range(count):
        # The point that would make the mean of the chosen equal to that of all.
        distances = points.distances(wanted.float()).masked_fill(taken, math.inf)
        chosen.append(int(distances.argmin()))
        taken[chosen[-1]] = True
        wanted += mean - points[chosen[-1] : chosen[-1] + 1][0].double()
    return torch.tensor(chosen)

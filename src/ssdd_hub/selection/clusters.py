"""k-means clusters of source images by their targets, for group-wise methods and balanced starts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ssdd_hub.errors import InputError
from ssdd_hub.seeds import derive_seed
from ssdd_hub.selection.coresets import Points, find_centres, nearest_centres
from ssdd_hub.selection.methods import CHOICES, HIGH_LOSS, SelectionSettings
from ssdd_hub.selection.source import Source


@dataclass(frozen=True, eq=False)
class Clusters:
    """The cluster of each source image, by k-means of the targets."""

    numbers: Tensor  # (N,), int64; of every cluster that `of` gives there is an image
    count: int
    _centres: Tensor | None  # (K, D); None where all targets are alike

    @classmethod
    def find(cls, source: Source, count: int, seed: int) -> "Clusters":
        """Returns `count` clusters, fewer where there are fewer images, by the seed of a run."""
        points = Points(torch.arange(len(source.bank)), lambda rows: source.targets[rows].cpu())
        count = min(count, len(points))
        centres = find_centres(points, count, derive_seed(seed, "groups"))
        if bool((centres == centres[0]).all()):
            # As for an estimate of a run's time, whose targets stand for others: images are dealt out.
            return cls(torch.arange(len(points)) % count, count, None)
        return cls(nearest_centres(points, centres), count, centres)

    def of(self, targets: Tensor) -> Tensor:
        """Returns the cluster of each of other targets `(n, D)`: that of the nearest centre."""
        if self._centres is None:
            return torch.arange(len(targets)) % self.count
        # Of equal centres, all but one are nearest to no image.
        used = torch.tensor(sorted({*self.numbers.tolist()}))
        targets = targets.detach().cpu().float()
        return used[nearest_centres(Points(torch.arange(len(targets)), targets.__getitem__), self._centres[used])]


def choose_evenly(method: str, source: Source, count: int, seed: int, settings: SelectionSettings) -> Tensor:
    """Chooses as many images of each of `settings.balance` clusters, of the first ones one more where that is needed.

    The images of a cluster are chosen by a method of `CHOICES`. Returns the indices `(count,)`, cluster by cluster.

    Raises:
        InputError: A cluster has fewer images.
    """
    clusters, by_seed = Clusters.find(source, settings.balance or 1, seed), derive_seed(seed, "first images")
    everything = torch.arange(len(source.bank))
    if method == HIGH_LOSS:
        # All in one order, for which experts are trained once.
        everything = CHOICES[method](source, everything, len(everything), by_seed, settings)
    chosen = list[Tensor]()
    for number in range(clusters.count):
        rows = everything[clusters.numbers[everything] == number]
        wanted = count // clusters.count + (number < count % clusters.count)
        if wanted > len(rows):
            told = f"{wanted} first images of each of {clusters.count} clusters are to be chosen"
            raise InputError(f"{told}, and cluster {number} has {len(rows)}: lower selection.balance, or choose fewer")
        if method != HIGH_LOSS:
            own = derive_seed(by_seed, "cluster", number)
            rows = rows[CHOICES[method](source, rows, wanted, own, settings)] if wanted else rows[:0]
        chosen.append(rows[:wanted])
    return torch.cat(chosen)

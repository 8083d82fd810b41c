"""Groups of real and synthetic images, which methods match one by one: classes, or clusters of a teacher's targets."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn.functional import one_hot

from ssdd_hub.distill.batches import CachedBatches
from ssdd_hub.distill.method import Problem
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.errors import InputError
from ssdd_hub.seeds import draw_batch, draw_distinct
from ssdd_hub.selection.clusters import Clusters
from ssdd_hub.selection.source import Source

_LOG = logging.getLogger(__name__)


class Groups:
    """The group of each image, and the real images of each.

    Where targets are class labels, groups are the classes, and an image of the set is of that of its first target, the
    index of its largest value. Otherwise groups are clusters by k-means of the real images' targets, and an image of
    the set is in that whose centre is nearest to its first target. Groups without an image of the set are left out.

    Args:
        problem: The real data, of which batches are drawn here by rows, and not step by step as `problem.batches`.
        of_source: The group of each real image, `(N,)`, int64, on the CPU.
        of_set: The group of each image of the set, `(M,)`, int64, on the CPU.

    Attributes:
        are_classes: Whether they are classes.
        present: The groups that the set has images of, in ascending order.

    Raises:
        InputError: An image of the set is in a group without a real image.
    """

    def __init__(self, problem: Problem, of_source: Tensor, of_set: Tensor) -> None:
        source, engine = require_source(problem), problem.engine
        self.of_source, self.of_set, self.seed = of_source, of_set, problem.network_seed
        self.are_classes = problem.has_classes
        self.present = sorted({*of_set.tolist()})
        missing = sorted({*self.present} - {*of_source.tolist()})
        if missing:
            raise InputError(
                f"the set has images of groups {missing}, and there is no real image of these: start from real images"
            )
        self._members: dict[int, Tensor] = {number: (of_source == number).nonzero()[:, 0] for number in self.present}
        self._own: dict[int, Tensor] = {number: (of_set == number).nonzero()[:, 0] for number in self.present}
        place: dict[str, Any] = {"seed": problem.seed, "device": engine.device, "dtype": engine.dtype}
        shown: dict[str, Any] = {
            "pixels": source.bank.pixels,
            "pixel_space": source.pixel_space,
            "targets": source.targets,
        }
        on_disk = source.bank.on_disk or getattr(source.targets, "on_disk", False)
        self._real = CachedBatches(**shown, **place, batch_size=problem.batch_size, on_disk=on_disk)

    @classmethod
    def find(cls, problem: Problem, targets: Tensor, count: int) -> "Groups":
        """Returns the groups of a set whose first targets are `(M, D)`; `count` is the number of clusters, at most."""
        source = require_source(problem)
        if source.classes is not None:
            of_source, of_set, total = source.classes.long(), targets.detach().argmax(1).cpu(), targets.shape[1]
        else:
            clusters = Clusters.find(source, count, problem.seed)
            of_source, of_set, total = clusters.numbers, clusters.of(targets), clusters.count
        found = cls(problem, of_source, of_set)
        if len(found.present) < total:
            left_out = total - len(found.present)
            _LOG.warning("%d of %d groups have no image of the set and are left out", left_out, total)
        return found

    def rows(self, number: int) -> Tensor:
        """Returns the images of the set in a group, as indices `(m,)`, on the CPU."""
        return self._own[number]

    def real_rows(self, number: int, count: int, step: int) -> Tensor:
        """Returns the indices of at most `count` different real images of a group, drawn by the seed and the step."""
        members = self._members[number]
        size = min(count, len(members))
        # Whole batches of a shuffle; the next one begins where fewer are left, so that none holds an image twice.
        shuffle, place = divmod(step, len(members) // size)
        order = draw_distinct(len(members), len(members), self.seed, f"real images of group {number}", shuffle)
        return members[order[place * size : (place + 1) * size]]

    def real(self, number: int, count: int, step: int) -> Pairs:
        """Returns the real images at `real_rows`."""
        real = self._real
        if real.ahead:
            real.ahead(lambda: real.read_at(self.real_rows(number, count, step + 1)))
        return self.at(self.real_rows(number, count, step))

    def any_real(self, count: int, purpose: str, step: int) -> tuple[Pairs, Tensor]:
        """Returns at most `count` real images of any group, with the group of each."""
        size = min(count, len(self.of_source))
        rows = draw_batch(len(self.of_source), size, self.seed, purpose, step)
        return self.at(rows), self.of_source[rows]

    def at(self, rows: Tensor) -> Pairs:
        """Returns real images at indices `(n,)`, on the device and in the type of the set."""
        return Pairs(*self._real.at(rows))

    def as_classes(self, pairs: Pairs, numbers: Tensor) -> Pairs:
        """Returns pairs whose targets are one-hot vectors `(n, D)` of their groups `(n,)`, which must be classes."""
        classes: Tensor = one_hot(numbers, pairs.targets.shape[1])
        return Pairs(pairs.images, classes.to(pairs.targets))

    def state_dict(self) -> dict[str, Any]:
        """Returns the group of each image."""
        return {"of_source": self.of_source, "of_set": self.of_set}

    @classmethod
    def load(cls, problem: Problem, state: Mapping[str, Any]) -> "Groups":
        """Returns the groups of `state_dict`."""
        return cls(problem, state["of_source"], state["of_set"])


def require_source(problem: Problem) -> Source:
    """Returns all real images of a problem; raises an `InputError` where it has only batches."""
    if problem.source is None:
        raise InputError("this method needs all real images, not only batches: give Problem(..., source=Source(...))")
    return problem.source

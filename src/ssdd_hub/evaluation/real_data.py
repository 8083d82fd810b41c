"""Real images of one dataset, to measure students on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ssdd_hub.data.bank import ImageBank
from ssdd_hub.errors import InputError
from ssdd_hub.models.features import in_parts
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.runs.inputs import fingerprint_labels
from ssdd_hub.sets.folder import describe_tensor
from ssdd_hub.targets.targets import Targets

MOST_CLASSES = 2**20  # of which a classifier has a row each; labels that are years or ids would take terabytes
CHUNK = 512  # images that are read at a time


@dataclass(frozen=True, eq=False)
class RealData:
    """Real images of one dataset to measure on."""

    name: str
    train: ImageBank  # labelled images are drawn from these
    heldout: ImageBank  # nothing is fitted on these
    pixel_space: PixelSpace  # in which students see real images
    device: torch.device  # where the students are
    heldout_targets: Targets | Tensor | None = None  # the teacher's, `(n, D)`, where they are known: of the source

    @cached_property
    def identity(self) -> dict[str, Any]:
        """JSON that names the images and the targets by their content."""
        targets = self.heldout_targets
        return {
            "train": [self.train.fingerprint, fingerprint_labels(self.train.labels)],
            "heldout": [self.heldout.fingerprint, fingerprint_labels(self.heldout.labels)],
            "targets": None if targets is None else describe_tensor(targets[:])["sha256"],
            "pixel_space": self.pixel_space.to_dict(),
        }

    @property
    def labelled(self) -> bool:
        """Whether there are labels to learn from, of two classes at least, and labels to score by."""
        known = [bank.labels[bank.labels >= 0] for bank in (self.train, self.heldout) if bank.labels is not None]
        return len(known) == 2 and bool((known[0] != known[0][:1]).any()) and len(known[1]) > 0

    @property
    def num_classes(self) -> int:
        """The number of classes: one more than the largest label of the training images."""
        classes = int(self.labels(self.train).max()) + 1
        if classes > MOST_CLASSES:
            raise InputError(
                f"labels of {self.name} must be classes from 0 on, at most {MOST_CLASSES} of them, and the largest is "
                f"{classes - 1}: number the classes that there are"
            )
        return classes

    def describe_classes(self) -> dict[str, Any]:
        """Returns the `names` of the classes, None where there are none, and the held-out `images` of each."""
        truth = self.labels(self.heldout)[self.known(self.heldout)]
        names, count = self.train.label_names, self.num_classes
        counts = torch.bincount(truth, minlength=count).tolist()
        return {"names": names[:count] if names and len(names) >= count else None, "images": counts}

    def known(self, bank: ImageBank) -> Tensor:
        """Returns the indices of a bank's images of known class (label 0 or above)."""
        return (self.labels(bank) >= 0).nonzero()[:, 0]

    def labels(self, bank: ImageBank) -> Tensor:
        """Returns the labels of a bank, `(N,)`, int64, -1 for unknown; raises a `ValueError` where it has none."""
        if bank.labels is None:
            raise ValueError(f"labels of {self.name} are required, and it has none: check data.labelled first")
        return bank.labels

    def images(self, bank: ImageBank, indices: Tensor | slice = slice(None)) -> Tensor:
        """Returns some images of a bank, `(n, C, H, W)`, float32, in the students' pixel space, on their device."""
        return self.pixel_space.normalise(bank.pixels[indices].to(self.device, torch.float32) / 255)

    @torch.no_grad()
    def apply(
        self,
        function: Callable[[Tensor], Tensor],
        bank: ImageBank,
        indices: Tensor | None = None,
        side: int | None = None,
    ) -> Tensor:
        """Returns a network's results `(n, ...)`, float32, on the CPU, of some images of a bank, by default all.

        `side` is the height and width that it resizes them to, where it does.
        """
        chunks = torch.split(torch.arange(len(bank)) if indices is None else indices, CHUNK)
        parts = (part for chunk in chunks for part in in_parts(self.images(bank, chunk), side))
        return torch.cat([function(part).float().cpu() for part in parts])

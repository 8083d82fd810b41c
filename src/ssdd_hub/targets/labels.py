"""Class labels as targets: one-hot vectors of the classes of the source, which no teacher computes."""

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import one_hot

from ssdd_hub.data.bank import DataSettings, ImageBank
from ssdd_hub.errors import InputError
from ssdd_hub.runs.inputs import fingerprint_labels

LABELS = "labels"
"""The `targets.of` of sets whose targets are class labels."""

_LOG = logging.getLogger(__name__)


def with_classes(images: ImageBank, settings: DataSettings) -> ImageBank:
    """Returns images that all have a class, and whose provenance states the sha256 of the labels.

    Those without a class are treated as images that cannot be decoded: see `DataSettings.on_corrupt`.

    Raises:
        InputError: No image has a class, or some have none and are not to be left out.
    """
    where = f"of the split '{images.provenance.get('split')}' of '{settings.name}'"
    if images.labels is None:
        raise InputError(
            f"class labels are to be the targets, and the images {where} have none: name their column by "
            "label_column, or use images in a folder for each class"
        )
    unknown = (images.labels < 0).nonzero()[:, 0]
    if len(unknown):
        told = f"{len(unknown)} of {len(images)} images {where} have no class"
        if settings.on_corrupt == "refuse":
            raise InputError(f"{told}, and classes are to be the targets: give them one, or pass on_corrupt skip")
        _LOG.warning("%s, and are left out", told)
        skipped = images.provenance.get("num_skipped", 0) + len(unknown)
        names = [*images.provenance.get("skipped", []), *(f"image {row}: no class" for row in unknown.tolist())]
        images = images.subset((images.labels >= 0).nonzero()[:, 0])
        images.provenance |= {"num_skipped": skipped, "skipped": names[:5]}
    return replace(images, provenance={**images.provenance, "labels": fingerprint_labels(images.labels)})


def check_classes(labels: Tensor) -> None:
    """Raises an `InputError` where all images, of labels `(N,)`, are of one class, which no method can tell apart."""
    if bool((labels == labels[:1]).all()):
        raise InputError(
            f"class labels as targets need images of two classes or more, and all {len(labels)} images are of one: "
            "use images of more classes, or leave out --targets.of labels: a teacher's features are then the targets"
        )


@dataclass(frozen=True, eq=False)
class OneHot:
    """One-hot vectors `(N, C)`, float32, of which only the rows that are indexed are made."""

    labels: Tensor  # (N,), int64, in [0, C)
    width: int

    def __len__(self) -> int:
        return len(self.labels)

    def __str__(self) -> str:
        return f"{len(self)} one-hot vectors of {self.width} classes"

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Returns `(n, C)` of a slice, or at indices `(n,)` in `[0, N)`, which may repeat."""
        return one_hot(self.labels[rows.cpu() if isinstance(rows, Tensor) else rows], self.width).float()

    def describe(self) -> dict[str, Any]:
        """Returns what provenance records of them."""
        return {"num_images": len(self), "width": self.width}


class LabelCache:
    """The one-hot vectors of images whose classes are those of a source, in place of a `FeatureCache`."""

    teacher = None

    def __init__(self, source: ImageBank, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        known = source.label_names or range(int(_labels(source).max()) + 1)
        self.width = len(known)

    def features(self, images: ImageBank, view: int | None = None, seed: int = 0) -> OneHot:
        """Returns `(N, C)`, which no view of an image changes."""
        return OneHot(_labels(images), self.width)


def _labels(images: ImageBank) -> Tensor:
    if images.labels is None or bool((images.labels < 0).any()):
        raise ValueError("images without a class have no such target: use with_classes first")
    return images.labels.to(torch.int64)

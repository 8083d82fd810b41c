"""Real images of one dataset, to measure students on."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ssdd_hub.data.bank import ImageBank
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.runs.inputs import fingerprint_labels
from ssdd_hub.targets.targets import Targets


@dataclass(frozen=True, eq=False)
class RealData:
    """Real images of one dataset to measure on.

    Attributes:
        name: What it is called in scores.
        train: Images that labelled ones are drawn from.
        heldout: Images that nothing was fitted on.
        pixel_space: The space in which students see real images.
        device: Where the students are.
        heldout_targets: The teacher's targets of the held-out images, `(n, D)`, where they are known: of the source.
    """

    name: str
    train: ImageBank
    heldout: ImageBank
    pixel_space: PixelSpace
    device: torch.device
    heldout_targets: Targets | Tensor | None = None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What names the images and the targets by their content, as JSON."""
        targets = None
        if self.heldout_targets is not None:
            targets = hashlib.sha256(self.heldout_targets[:].cpu().contiguous().numpy().tobytes()).hexdigest()
        banks = {"train": self.train, "heldout": self.heldout}
        return {
            **{name: [bank.fingerprint, fingerprint_labels(bank.labels)] for name, bank in banks.items()},
            "targets": targets,
            "pixel_space": self.pixel_space.to_dict(),
        }

    @property
    def labelled(self) -> bool:
        """Whether there are labels to learn from, of two classes at least, and labels to score by."""
        known = [bank.labels[bank.labels >= 0] for bank in (self.train, self.heldout) if bank.labels is not None]
        return len(known) == 2 and bool((known[0] != known[0][:1]).any()) and len(known[1]) > 0

    def known(self, bank: ImageBank) -> Tensor:
        """Returns the indices of a bank's images of known class (label 0 or above).

        Raises:
            ValueError: The bank has no labels.
        """
        return (self.labels(bank) >= 0).nonzero()[:, 0]

    def labels(self, bank: ImageBank) -> Tensor:
        """Returns the labels of a bank, `(N,)`, int64, -1 for unknown.

        Raises:
            ValueError: The bank has no labels.
        """
        if bank.labels is None:
            raise ValueError(f"labels of {self.name} are required, and it has none: check data.labelled first")
        return bank.labels

    def images(self, bank: ImageBank, indices: Tensor | slice = slice(None)) -> Tensor:
        """Returns some images of a bank, `(n, C, H, W)`, float32, in the students' pixel space, on their device."""
        return self.pixel_space.normalise(bank.pixels[indices].to(self.device, torch.float32) / 255)

    def batches(self, bank: ImageBank, indices: Tensor | None = None, size: int = 512) -> Iterator[Tensor]:
        """Yields images of a bank, all of them by default, `size` at a time."""
        for part in torch.split(torch.arange(len(bank)) if indices is None else indices, size):
            yield self.images(bank, part)

    @torch.no_grad()
    def apply(self, function: Callable[[Tensor], Tensor], bank: ImageBank, indices: Tensor | None = None) -> Tensor:
        """Applies a network to images of a bank without a graph, a few hundred at a time.

        Args:
            function: From `(n, C, H, W)` to `(n, ...)`.
            bank: One of this data's.
            indices: Which of its images, `(n,)`; all by default.

        Returns:
            The results of all images, float32, on the CPU.
        """
        return torch.cat([function(images).float().cpu() for images in self.batches(bank, indices)])

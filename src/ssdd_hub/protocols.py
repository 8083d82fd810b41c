"""Protocols: what a pre-trained student is worth on held-out real images."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

from ssdd_hub.backbones import pre_logits
from ssdd_hub.images import ImageBank
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.streams import generator
from ssdd_hub.targets import Targets

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class RealData:
    """Real images to measure on.

    Attributes:
        source: The source images: labelled images and random references are drawn from them.
        targets: Their targets, `(N, D)`, float32, in memory or read when they are needed.
        heldout: Images that neither teacher nor distiller has seen.
        heldout_targets: Their targets, `(n, D)`, float32.
        pixel_space: The space in which students see real images.
        device: Where the students are.
    """

    source: ImageBank
    targets: Targets | Tensor
    heldout: ImageBank
    heldout_targets: Tensor
    pixel_space: PixelSpace
    device: torch.device

    @property
    def labelled(self) -> bool:
        """Whether a probe can be fitted, on two classes at least, and scored."""
        known = [bank.labels[bank.labels >= 0] for bank in (self.source, self.heldout) if bank.labels is not None]
        return len(known) == 2 and bool((known[0] != known[0][:1]).any()) and len(known[1]) > 0

    def images(self, bank: ImageBank, indices: Tensor | slice = slice(None)) -> Tensor:
        """Returns some images of a bank, `(n, C, H, W)`, float32, in the students' pixel space."""
        return self.pixel_space.normalise(bank.pixels[indices].to(self.device, torch.float32) / 255)

    def random_pair(self, count: int, seed: int) -> Pair:
        """Draws random source images with their targets: the reference that a distilled set has to beat."""
        chosen = torch.randperm(len(self.source), generator=generator(seed, "random reference"))[:count]
        return self.images(self.source, chosen), self.targets[chosen].to(self.device)


@torch.no_grad()
def in_chunks(function: Callable[[Tensor], Tensor], images: Tensor, size: int = 512) -> Tensor:
    """Applies a network to `(n, ...)` images, `size` at a time, without a graph."""
    return torch.cat([function(part) for part in torch.split(images, size)])


def teacher_error(student: nn.Module, data: RealData) -> float:
    """Returns the mean squared error of a student's outputs to the targets of held-out images, over images and `D`."""
    outputs = in_chunks(student, data.images(data.heldout))
    return functional.mse_loss(outputs, data.heldout_targets.to(outputs)).item()


def draw_labelled(labels: Tensor, count: int, seed: int) -> Tensor:
    """Draws the labelled images of a probe: class by class in turn, so that classes differ by one image at most.

    Args:
        labels: `(N,)`, int64.
        count: Images to draw; all of them where there are fewer.
        seed: Seed of the draw.

    Returns:
        Indices `(min(count, N),)`.
    """
    order = torch.randperm(len(labels), generator=generator(seed, "labelled images"))
    shuffled = labels[order].numpy()
    rank = np.empty(len(shuffled), dtype=np.int64)  # how many images of its class come before an image
    for label in np.unique(shuffled):
        members = np.flatnonzero(shuffled == label)
        rank[members] = np.arange(len(members))
    return order[torch.from_numpy(np.argsort(rank, kind="stable")[:count])]


def linear_probe(student: nn.Module, data: RealData, count: int, seed: int, draws: int = 1) -> float:
    """Returns the held-out accuracy, in `[0, 1]`, of a logistic regression on a student's frozen features.

    The features are centred and divided by their overall std over the labelled images; the regression is
    scikit-learn's, with its default ridge. Images of unknown class (label -1) are left out. Which images are labelled
    matters more than the student, hence the mean over several draws of them.

    Args:
        student: In eval mode.
        data: Must be labelled.
        count: Labelled images of a draw.
        seed: Seed of the draws; no two seeds share one.
        draws: Number of draws.

    Raises:
        ValueError: The data has no labels.
    """
    if data.source.labels is None or data.heldout.labels is None:
        raise ValueError("a linear probe needs labels of the source and of the held-out images")
    labels, heldout_labels = data.source.labels, data.heldout.labels
    known, tested = ((part >= 0).nonzero()[:, 0] for part in (labels, heldout_labels))

    def _features(bank: ImageBank, indices: Tensor) -> np.ndarray[Any, Any]:
        return in_chunks(partial(pre_logits, student), data.images(bank, indices)).double().cpu().numpy()

    test, accuracies = _features(data.heldout, tested), []
    for draw in range(seed * draws, (seed + 1) * draws):
        chosen = known[draw_labelled(labels[known], count, draw)]
        train = _features(data.source, chosen)
        centre, scale = train.mean(0), max(train.std(), 1e-12)
        probe = LogisticRegression(max_iter=2000).fit((train - centre) / scale, labels[chosen].numpy())
        accuracies.append(probe.score((test - centre) / scale, heldout_labels[tested].numpy()))
    return float(np.mean(accuracies))

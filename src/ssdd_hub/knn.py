"""Nearest neighbours in feature space: what a training without labels is watched by."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from ssdd_hub.backbones import pre_logits
from ssdd_hub.errors import require
from ssdd_hub.images import ImageBank
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.streams import generator


@dataclass(frozen=True)
class WatchSettings:
    """How the training of a teacher is watched: by nearest neighbours where there are labels, and by its rank.

    Attributes:
        every: Epochs between scores, besides those before and after the training; 0 for these two only.
        neighbours: Neighbours `k` that vote.
        temperature: A neighbour of cosine similarity `s` votes with weight `exp(s / temperature)`.
        max_images: At most this many source images to look among, and this many held-out images to score, drawn by
            seed.
        probe: Labelled source images of a linear probe on the trained teacher, scored on all held-out images; 0 for no
            probe.
    """

    every: int = 10
    neighbours: int = 200
    temperature: float = 0.1
    max_images: int = 10000
    probe: int = 0

    def __post_init__(self) -> None:
        require(
            (self.every >= 0, f"watch.every must be at least 0, got {self.every}"),
            (self.neighbours >= 1, f"watch.neighbours must be at least 1, got {self.neighbours}"),
            (self.temperature > 0, f"watch.temperature must be above 0, got {self.temperature}"),
            (self.max_images >= 2, f"watch.max_images must be at least 2, got {self.max_images}"),
            (self.probe == 0 or self.probe >= 2, f"watch.probe must be 0 or at least 2, got {self.probe}"),
        )


def knn_accuracy(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    neighbours: int = 200,
    temperature: float = 0.1,
) -> float:
    """Returns the accuracy, in `[0, 1]`, of a vote of nearest neighbours by cosine similarity.

    The protocol of Wu et al. (CVPR 2018, arXiv 1805.01978, section 3.4): a neighbour of similarity `s` votes for its
    class with weight `exp(s / temperature)`.

    Args:
        features: `(N, D)`, of the images that vote.
        labels: `(N,)`, int64.
        test_features: `(n, D)`.
        test_labels: `(n,)`, int64.
        neighbours: Neighbours `k` that vote; all where there are fewer.
        temperature: Of the weights.
    """
    vote = KNeighborsClassifier(
        min(neighbours, len(features)),
        metric="cosine",
        algorithm="brute",
        weights=lambda distances: np.exp((1 - distances) / temperature),
    )
    vote.fit(features.float().numpy(), labels.numpy())
    predicted = vote.classes_[vote.predict_proba(test_features.float().numpy()).argmax(1)]
    return float((predicted == test_labels.numpy()).mean())


def effective_rank(features: Tensor) -> float:
    """Returns how many dimensions features `(n, D)` fill, in `[1, min(n, D)]`: 1 when they have collapsed to a line.

    The exponential of the entropy of the normalised singular values (RankMe: Garrido et al., ICML 2023,
    arXiv 2210.02885, equation 1).
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp(min=1e-300)
    return float(torch.special.entr(shares).sum().exp())


class Watch:
    """Scores a backbone in training on real images; the labels are used for nothing else.

    Args:
        source: The source images.
        heldout: Images that the training does not see.
        pixel_space: The space that the backbone is trained in.
        settings: See `WatchSettings`.
        seed: Seed of the draw of images.
        batch_size: Images per forward pass.
    """

    def __init__(
        self,
        source: ImageBank,
        heldout: ImageBank,
        pixel_space: PixelSpace,
        settings: WatchSettings,
        seed: int,
        batch_size: int = 256,
    ) -> None:
        self.settings = settings
        self.pixel_space = pixel_space
        self.batch_size = batch_size
        self.banks = [self._draw(bank, name, seed) for name, bank in (("source", source), ("held-out", heldout))]

    def _draw(self, bank: ImageBank, name: str, seed: int) -> tuple[Tensor, Tensor | None]:
        order = torch.randperm(len(bank), generator=generator(seed, f"watched {name} images"))
        chosen = order[: self.settings.max_images].sort().values
        labels = None if bank.labels is None else bank.labels[chosen]
        return bank.pixels[chosen], labels

    @torch.no_grad()
    def __call__(self, backbone: nn.Module) -> dict[str, float]:
        """Returns `knn`, the accuracy where both parts have labels, and `rank`, the effective rank.

        Both are of the pre-logits in eval mode; every part of the backbone keeps its mode.
        """
        modes = {module: module.training for module in backbone.modules()}
        backbone.eval()
        try:
            (features, labels), (test_features, test_labels) = (
                (self._features(backbone, pixels), labels) for pixels, labels in self.banks
            )
        finally:
            for module, mode in modes.items():
                module.training = mode
        scores = {"rank": effective_rank(test_features)}
        if labels is None or test_labels is None or not ((labels >= 0).any() and (test_labels >= 0).any()):
            return scores
        known, tested = labels >= 0, test_labels >= 0
        return scores | {
            "knn": knn_accuracy(
                features[known],
                labels[known],
                test_features[tested],
                test_labels[tested],
                self.settings.neighbours,
                self.settings.temperature,
            )
        }

    def _features(self, backbone: nn.Module, pixels: Tensor) -> Tensor:
        device = next(backbone.parameters()).device
        parts = (
            pre_logits(backbone, self.pixel_space.normalise(part.to(device, torch.float32) / 255)).float().cpu()
            for part in torch.split(pixels, self.batch_size)
        )
        return torch.cat(list(parts))


Watcher = Callable[[nn.Module], dict[str, float]]

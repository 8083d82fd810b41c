"""Nearest neighbours in feature space: what a training without labels is watched by."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

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
        test_features: `(n, D)`, on the device of the features, where the work is done.
        test_labels: `(n,)`, int64.
        neighbours: Neighbours `k` that vote; all where there are fewer.
        temperature: Of the weights.
    """
    voters, features = functional.normalize(features.float()), functional.normalize(test_features.float())
    classes, numbers = torch.unique(labels.to(features.device), return_inverse=True)
    right = 0
    truths = torch.split(test_labels.to(features.device), 1024)
    for part, truth in zip(torch.split(features, 1024), truths, strict=True):
        similarities, nearest = (part @ voters.T).topk(min(neighbours, len(voters)))
        # Relative to the nearest, since the exponential of 1 / temperature itself may overflow.
        weights = ((similarities - similarities[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(part), len(classes)).scatter_add_(1, numbers[nearest], weights)
        right += int((classes[votes.argmax(1)] == truth).sum())
    return right / len(features)


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
        self.watched = [
            (bank, self._draw(bank, name, seed)) for name, bank in (("source", source), ("held-out", heldout))
        ]

    def _draw(self, bank: ImageBank, name: str, seed: int) -> Tensor:
        order = torch.randperm(len(bank), generator=generator(seed, f"watched {name} images"))
        return order[: self.settings.max_images].sort().values

    @torch.no_grad()
    def __call__(self, backbone: nn.Module) -> dict[str, float]:
        """Returns `rank`, the effective rank, and `knn`, the accuracy, where both parts have labels.

        Both are of the pre-logits in eval mode; every part of the backbone keeps its mode. Features that are not
        finite have no scores.
        """
        modes = {module: module.training for module in backbone.modules()}
        backbone.eval()
        try:
            features, test_features = (self._features(backbone, bank, chosen) for bank, chosen in self.watched)
        finally:
            for module, mode in modes.items():
                module.training = mode
        if not (features.isfinite().all() and test_features.isfinite().all()):
            return {}
        return {"rank": effective_rank(test_features), **self._knn(features, test_features)}

    def _knn(self, features: Tensor, test_features: Tensor) -> dict[str, float]:
        labels, test_labels = (None if bank.labels is None else bank.labels[chosen] for bank, chosen in self.watched)
        if labels is None or test_labels is None:
            return {}
        known, tested = labels >= 0, test_labels >= 0
        if not (known.any() and tested.any()):
            return {}
        voters = (features[known.to(features.device)], labels[known])
        tests = (test_features[tested.to(features.device)], test_labels[tested])
        return {"knn": knn_accuracy(*voters, *tests, self.settings.neighbours, self.settings.temperature)}

    def _features(self, backbone: nn.Module, bank: ImageBank, chosen: Tensor) -> Tensor:
        device = next(backbone.parameters()).device
        parts = [
            pre_logits(backbone, self.pixel_space.normalise(bank.pixels[part].to(device, torch.float32) / 255)).float()
            for part in torch.split(chosen, self.batch_size)
        ]
        return torch.cat(parts)

"""kNN accuracy and effective rank of a backbone during its training, and their curves."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssdd_hub.bounds import Count, Natural, Positive, Rule, Settings, Several
from ssdd_hub.data.bank import ImageBank
from ssdd_hub.files import atomic_path
from ssdd_hub.models.features import pre_logits
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.seeds import generator

# Colour and title of each curve.
CURVES = {
    "loss": ("#1f6f8b", "self-supervised loss"),
    "knn": ("#b5523b", "kNN accuracy in %"),
    "rank": ("#7a8b1f", "effective rank of the features"),
}


@dataclass(frozen=True)
class WatchSettings(Settings, section="watch"):
    """How the training of a teacher is monitored: by nearest neighbours where there are labels, and by its rank.

    Attributes:
        every: Epochs between scores, besides those before and after the training; 0 for these two only.
        neighbours: Neighbours `k` that vote.
        temperature: A neighbour of cosine similarity `s` votes with weight `exp(s / temperature)`.
        max_images: At most this many source images to look among, and this many held-out images to score, drawn by
            seed.
        probe: Labelled source images of a linear probe on the trained teacher, scored on all held-out images; 0 for no
            probe.
    """

    every: Natural = 10
    neighbours: Count = 200
    temperature: Positive = 0.1
    max_images: Several = 10000
    probe: Annotated[int, Rule("0 or at least 2", lambda images: images == 0 or images >= 2)] = 0


def knn_votes(
    features: Tensor, labels: Tensor, test_features: Tensor, neighbours: int = 200, temperature: float = 0.1
) -> Tensor:
    """Returns the classes `(n,)` of test features `(n, D)` by a vote of their nearest among features `(N, D)`.

    The protocol of Wu et al. (CVPR 2018, arXiv 1805.01978, section 3.4): a neighbour of cosine similarity `s` votes
    for its class with weight `exp(s / temperature)`. All vote where there are fewer than `neighbours`.
    """
    voters, features = functional.normalize(features.float()), functional.normalize(test_features.float())
    classes, numbers = torch.unique(labels.to(features.device), return_inverse=True)
    found = []
    for part in torch.split(features, 1024):
        similarities, nearest = (part @ voters.T).topk(min(neighbours, len(voters)))
        # Relative to the nearest, since the exponential of 1 / temperature itself may overflow.
        weights = ((similarities - similarities[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(part), len(classes)).scatter_add_(1, numbers[nearest], weights)
        found.append(classes[votes.argmax(1)])
    return torch.cat(found)


def knn_accuracy(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    neighbours: int = 200,
    temperature: float = 0.1,
) -> float:
    """Returns the accuracy, in `[0, 1]`, of `knn_votes` by the true classes `(n,)` of the test features."""
    votes = knn_votes(features, labels, test_features, neighbours, temperature)
    return int((votes == test_labels.to(votes.device)).sum()) / len(votes)


def effective_rank(features: Tensor) -> float:
    """Returns the effective number of dimensions of features `(n, D)`, in `[1, min(n, D)]`: 1 when they are on a line.

    The exponential of the entropy of the normalised singular values (RankMe: Garrido et al., ICML 2023,
    arXiv 2210.02885, equation 1).
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp(min=1e-300)
    return float(torch.special.entr(shares).sum().exp())


class Watch:
    """Scores of a backbone in training, on source and held-out images, a draw by seed; labels are used here only."""

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
        self.watched = []
        for name, bank in (("source", source), ("held-out", heldout)):
            order = torch.randperm(len(bank), generator=generator(seed, f"watched {name} images"))
            self.watched.append((bank, order[: settings.max_images].sort().values))

    @torch.no_grad()
    def __call__(self, backbone: nn.Module) -> dict[str, float]:
        """Returns the effective `rank` of pre-logits in eval mode and, where both parts have labels, their `knn`.

        Every part of the backbone keeps its mode. Features that are not finite have no scores.
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


def knn_records(log: list[dict[str, Any]], about: dict[str, str]) -> list[dict[str, Any]]:
    """Returns the kNN scores of the fresh and of the trained backbone, as `scores.json` has them; none without labels.

    Args:
        log: Records of `log.jsonl`.
        about: `source`, `target` and `student`, the backbone, of the records.
    """
    scored = [record for record in log if record["stage"] == "teacher" and "knn" in record]
    if not scored:
        return []
    values = {"untrained": scored[0]["knn"], "teacher": scored[-1]["knn"]}
    return [accuracy_record(about, name, "knn", value) for name, value in values.items()]


def accuracy_record(
    about: dict[str, str], name: str, protocol: str, accuracy: float, labels: int | None = None
) -> dict[str, Any]:
    """Returns one accuracy, in `[0, 1]`, of one network, as `scores.json` has it."""
    facts = {"set": name, **about, "protocol": protocol, "labels": labels, "metric": "accuracy"}
    return {**facts, "mean": accuracy, "std": None, "n": 1, "values": [accuracy]}


def render_training(path: Path, log: list[dict[str, Any]]) -> None:
    """Draws loss, kNN accuracy and rank over the steps of a teacher's log, as a PNG; none of an empty log."""
    from matplotlib.figure import Figure

    records = [record for record in log if record["stage"] == "teacher"]
    drawn = [name for name in CURVES if any(name in record for record in records)]
    if not drawn:
        return
    figure = Figure(figsize=(4.2 * len(drawn), 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        (colour, title), scale = CURVES[name], 100 if name == "knn" else 1
        points = [(record["step"], scale * record[name]) for record in records if name in record]
        axes.plot(*zip(*points, strict=True), ".-", color=colour)
        axes.set_xlabel("step")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)

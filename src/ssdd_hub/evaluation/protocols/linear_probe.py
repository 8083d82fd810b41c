"""Linear probes: logistic regressions on a student's frozen features."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ssdd_hub.bounds import Count, Fraction, Repeats, Rule, Settings
from ssdd_hub.data.bank import ImageBank
from ssdd_hub.errors import Check
from ssdd_hub.evaluation.protocols.base import (
    LabelledProtocol,
    Measure,
    Pretrained,
    measure_accuracy,
    require_finite,
)
from ssdd_hub.evaluation.protocols.logistic import Frame, Linear, fit_principal
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.models.features import pre_logits
from ssdd_hub.seeds import derive_seed, generator, seeded

ROUGH = 1e-5  # tolerance of fits that only choose a ridge
LABELS = Rule(
    "shares above 0 and at most 1, or counts of at least 2",
    lambda labels: bool(labels) and all(0 < n <= 1 or n >= 2 and n % 1 == 0 for n in labels),
)
RIDGES = Rule("above 0, one at least", lambda ridges: bool(ridges) and all(ridge > 0 for ridge in ridges))


@dataclass(frozen=True)
class ProbeSettings(Settings, section="probe"):
    """How linear probes draw labelled images and fit them.

    Attributes:
        labels: Labelled images: a share of all that have a label, in (0, 1], or a count of 2 or more; 1 is all of
            them. 1 and 5 % are those of Joshi et al. (ICLR 2025).
        draws: Random labelled subsets of each size; the accuracy is the mean over them.
        balanced: Draw class by class in turn, so that classes differ by one image at most; otherwise at random.
        heldout: Part of the labelled images, in [0, 1), that the ridge is chosen on.
        ridges: Weights of the L2 penalty to choose from: the loss is the mean cross-entropy plus `ridge / 2` times the
            squares of the weights.
        max_iter: Iterations of L-BFGS at most, for each ridge.
    """

    labels: Annotated[list[float], LABELS] = field(default_factory=lambda: [0.01, 0.05, 0.1, 0.5, 1.0])
    draws: Repeats = 3
    balanced: bool = False
    heldout: Fraction = 0.2
    ridges: Annotated[list[float], RIDGES] = field(default_factory=lambda: [1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    max_iter: Count = 1000

    def conflicts(self) -> Iterator[Check]:
        """Yields that the entries of `labels` differ."""
        yield len({*self.labels}) == len(self.labels), f"probe.labels must differ from each other, got {self.labels}"


def draw_order(labels: Tensor, seed: int, draw: int, balanced: bool = False) -> Tensor:
    """Returns a random permutation of the images, `(N,)`; labelled subsets are its beginnings.

    Balanced ones take class by class in turn: the classes of every beginning differ by one image at most, as long as
    each has images left.
    """
    order = torch.randperm(len(labels), generator=generator(seed, "labelled images", draw))
    if not balanced:
        return order
    shuffled = labels[order].numpy()
    rank = np.empty(len(shuffled), dtype=np.int64)  # how many images of its class come before an image
    for label in np.unique(shuffled):
        members = np.flatnonzero(shuffled == label)
        rank[members] = np.arange(len(members))
    return order[torch.from_numpy(np.argsort(rank, kind="stable"))]


def take_labelled(order: Tensor, labels: Tensor, amount: float) -> Tensor:
    """Returns a labelled subset, the beginning `(n,)` of an order; smaller ones are parts of larger ones.

    An amount is a share in (0, 1], rounded to whole images, or a count; 2 at least and all at most are taken. A
    beginning of one class teaches nothing. Its last image is then replaced by the first one of another class.
    """
    wanted = round(amount * len(order)) if amount <= 1 else int(amount)
    chosen = order[: max(2, wanted)]
    if bool((labels[chosen] == labels[chosen[0]]).all()):
        others = order[labels[order] != labels[chosen[0]]]
        chosen = torch.cat([chosen[:-1], others[:1]])
    return chosen


def fit_probe(features: Tensor, labels: Tensor, num_classes: int, settings: ProbeSettings) -> tuple[Linear, float]:
    """Fits a logistic regression to features `(n, F)`, in random order; returns it and its ridge.

    The features are centred and divided by their overall std, which the ridges refer to. The last `int(heldout * n)`
    images choose: the highest accuracy wins, and of equal ones the lowest cross-entropy. All images are then fitted
    with the winner. Where nothing can be chosen, because `n` is too small, the two parts share no class or the first
    is of one class, the middle ridge is taken, of an even number the larger one.
    """
    frame = Frame.of(features)
    # The variances along orthonormal directions add up to F times the overall variance.
    std = (frame.variances.sum() / features.shape[1]).sqrt().clamp_min(1e-12)
    inside, labels = frame.coordinates(features).div_(std), labels.to(features.device)
    variances = frame.variances / std**2
    ridge, start = _choose_ridge(inside, variances, labels, num_classes, settings)
    weight, bias = fit_principal(inside, variances, labels, ridge, num_classes, start, settings.max_iter)
    return frame.from_principal((weight / std, bias)), ridge


def _choose_ridge(
    features: Tensor, variances: Tensor, labels: Tensor, num_classes: int, settings: ProbeSettings
) -> tuple[float, Linear | None]:
    """Returns the best ridge, and what was fitted with it on the part that chooses nothing."""
    ridges = sorted(settings.ridges, reverse=True)
    count = len(labels) - int(settings.heldout * len(labels))
    seen = torch.isin(labels[count:], labels[:count])
    if len(ridges) == 1 or not seen.any() or bool((labels[:count] == labels[0]).all()):
        return ridges[(len(ridges) - 1) // 2], None
    choosing, truth = features[count:][seen], labels[count:][seen]
    part, solved, found = (features[:count], variances, labels[:count]), None, []
    for ridge in ridges:
        # From the largest ridge on, each fit starts where the last one ended.
        solved = fit_principal(*part, ridge, num_classes, solved, settings.max_iter, ROUGH)
        odds = torch.addmm(solved[1], choosing, solved[0].T)
        score = (int((odds.argmax(1) == truth).sum()), -functional.cross_entropy(odds, truth).item())
        found.append((score, ridge, solved))
    return max(found, key=lambda entry: entry[0])[1:]


def frozen_features(student: nn.Module, data: RealData, bank: ImageBank, indices: Tensor) -> Tensor:
    """Returns a student's pre-logits of some images, `(n, F)`, float32, finite, on the device of the data."""
    return require_finite(data.apply(partial(pre_logits, student), bank, indices).to(data.device))


class LinearProbe(LabelledProtocol[ProbeSettings]):
    """Held-out accuracy of a logistic regression on frozen pre-logits, its ridge chosen on labelled images.

    For each entry of `labels` it is the mean over the draws. Images of unknown class (label -1) are left out. All
    students and all sets see the same labelled subsets, if they have the same seed. Where all labelled images are
    taken there is but one subset.
    """

    name = "probe"

    def __call__(self, pretrained: Pretrained, data: RealData) -> list[Measure]:
        """Measures the mean accuracy over the draws, for each entry of `labels`."""
        known, tested = data.known(data.train), data.known(data.heldout)
        labels, truth = data.labels(data.train)[known], data.labels(data.heldout)[tested].to(data.device)
        subsets = self._subsets(labels, pretrained.seed)
        needed = torch.unique(torch.cat([chosen for draws in subsets for chosen in draws]))
        features = frozen_features(pretrained.student, data, data.train, known[needed])
        test = frozen_features(pretrained.student, data, data.heldout, tested)
        measures = []
        for amount, draws in zip(self.settings.labels, subsets, strict=True):
            hits = torch.zeros_like(truth)
            for draw, chosen in enumerate(draws):
                rows = torch.searchsorted(needed, chosen)
                part, classes = features[rows.to(data.device)], labels[chosen].to(data.device)
                weight, bias = self._fit(part, classes, data.num_classes, derive_seed(pretrained.seed, "probe", draw))
                hits += torch.addmm(bias, test, weight.T).argmax(1) == truth
            measures.append(measure_accuracy(hits, truth, data.num_classes, amount, len(draws)))
        return measures

    def _subsets(self, labels: Tensor, seed: int) -> list[list[Tensor]]:
        """Returns the labelled subsets of each size, each a draw of indices `(n,)`."""
        orders = [draw_order(labels, seed, draw, self.settings.balanced) for draw in range(self.settings.draws)]
        subsets = [[take_labelled(order, labels, amount) for order in orders] for amount in self.settings.labels]
        return [draws[:1] if len(draws[0]) == len(labels) else draws for draws in subsets]

    def _fit(self, features: Tensor, labels: Tensor, num_classes: int, seed: int) -> Linear:
        return fit_probe(features, labels, num_classes, self.settings)[0]


class MkdtProbe(LinearProbe):
    """The linear probe of Joshi et al. (ICLR 2025, arXiv 2410.02116), as in their released code: see `fit_mkdt`.

    Features as they are, random subsets, one output for each class of the data. Where the fit diverges, the accuracy
    is that of an arbitrary class. Of the settings, `labels` and `draws` are used; the code's draws are its 3 seeds.
    """

    name = "probe_mkdt"

    def __init__(self, settings: ProbeSettings) -> None:
        super().__init__(replace(settings, balanced=False))

    def key(self, data: RealData) -> dict[str, Any]:
        """Returns the settings that are used."""
        return {"labels": self.settings.labels, "draws": self.settings.draws}

    def _fit(self, features: Tensor, labels: Tensor, num_classes: int, seed: int) -> Linear:
        return fit_mkdt(features, labels, num_classes, seed)


def fit_mkdt(features: Tensor, labels: Tensor, num_classes: int, seed: int, calls: int = 20) -> Linear:
    """Fits MKDT's linear layer, from PyTorch's initial weights, to features `(n, F)` and labels `(n,)`.

    20 calls of `torch.optim.LBFGS` with its defaults (20 iterations a call, steps of 1, no line search) on the mean
    cross-entropy plus 1e-3 times the squares of the weights, a ridge of 2e-3; the bias has no penalty.
    """
    with seeded(seed, "probe layer"):
        layer = nn.Linear(features.shape[1], num_classes)
    layer = layer.to(features)
    optimizer = torch.optim.LBFGS(layer.parameters())

    def _closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(layer(features), labels) + 1e-3 * layer.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    for _ in range(calls):
        optimizer.step(_closure)  # type: ignore[no-untyped-call]
    return layer.weight.detach(), layer.bias.detach()

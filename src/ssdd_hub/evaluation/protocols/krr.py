"""Kernel ridge regression from the set itself, by a student that is not trained."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ssdd_hub.bounds import Count, Positive, Settings
from ssdd_hub.distill.krr import linear_kernel
from ssdd_hub.errors import InputError
from ssdd_hub.evaluation.protocols.base import Measure, Pretrained
from ssdd_hub.evaluation.protocols.knn import KnnSettings
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.models.features import pre_logits
from ssdd_hub.models.pretraining import Pair, Pairs
from ssdd_hub.seeds import generator

# Pairs whose features are computed at a time.
CHUNK = 512


@dataclass(frozen=True)
class KrrSettings(Settings, section="krr"):
    """The kernel ridge regression from a set; the ridge is that of Lee et al. (ICLR 2024).

    Attributes:
        ridge: Regularisation relative to the trace of the kernel.
        max_pairs: At most this many pairs are regressed on, drawn by seed.
    """

    ridge: Positive = 1e-6
    max_pairs: Count = 50000


def regress(parts: Iterable[Pair], count: int, ridge: float = 1e-6) -> Tensor:
    """Returns the weights of the regression of `krr.predict`: its prediction is `[features, 1] @ weights`.

    With more pairs than features the same weights follow from the covariance of the features, which is all that is
    kept: `K (K + λI)⁻¹ = Φ (ΦᵀΦ + λI)⁻¹ Φᵀ` for `K = ΦΦᵀ`. All is float64.

    Args:
        parts: Features `(n, F)`, without the constant, and targets `(n, D)`, part by part.
        count: Number of pairs `M` of all parts.
        ridge: Regularisation relative to the trace of the kernel, above 0.

    Returns:
        `(F + 1, D)`, float64; the last row is that of the constant.
    """
    parts = iter(parts)
    first = next(parts)
    longer = ((_append_one(features), targets.double()) for features, targets in chain([first], parts))
    if count <= first[0].shape[1] + 1:
        features, targets = (torch.cat(column) for column in zip(*longer, strict=True))
        kernel = linear_kernel(features[:, :-1], features[:, :-1])
        return features.T @ _solve(kernel, targets, ridge)
    width = first[0].shape[1] + 1
    covariance = first[0].new_zeros(width, width, dtype=torch.float64)
    products = covariance.new_zeros(width, first[1].shape[1])
    for features, targets in longer:
        covariance.addmm_(features.T, features)
        products.addmm_(features.T, targets)
    return _solve(covariance, products, ridge)


def _append_one(features: Tensor) -> Tensor:
    return functional.pad(features.double(), (0, 1), value=1.0)


def _solve(matrix: Tensor, right: Tensor, ridge: float) -> Tensor:
    # Kernel and covariance have the same trace.
    matrix.diagonal().add_(ridge * matrix.trace())
    solution: Tensor = torch.linalg.solve(matrix, right)
    return solution


class KernelRegression:
    """What a set teaches a fresh student without any training: kernel ridge regression from its pairs.

    The outer problem of KRR-ST (Lee et al., ICLR 2024, section 3) as a measure: the features are those of a fresh
    student in eval mode. `mse` is the error of the predicted targets of held-out images to the teacher's. `accuracy`
    is that of a vote of nearest neighbours among the predicted targets of labelled images, the teacher's own protocol
    with predictions in place of its features. It needs no labels in the set and no targets of the images, so that it
    can be asked on any data.

    Args:
        settings: See `KrrSettings`.
        vote: See `KnnSettings`.
    """

    name = "krr"

    def __init__(self, settings: KrrSettings, vote: KnnSettings | None = None) -> None:
        self.settings = settings
        self.vote = vote or KnnSettings()

    def key(self, data: RealData) -> dict[str, Any]:
        """Returns all settings, and where there are labels those of the vote."""
        return {**asdict(self.settings), **({"vote": asdict(self.vote)} if data.labelled else {})}

    def applies(self, pretrained: Pretrained, data: RealData) -> bool:
        """Whether there are pairs to regress on, and targets or labels to score by."""
        return pretrained.pairs is not None and (data.heldout_targets is not None or data.labelled)

    def __call__(self, pretrained: Pretrained, data: RealData) -> list[Measure]:
        """Measures the error where targets are known, and the accuracy where labels are.

        Raises:
            InputError: The predictions are not finite.
        """
        if pretrained.pairs is None:
            raise ValueError("kernel ridge regression needs pairs: check applies() first")
        predict = self._predictor(pretrained, pretrained.pairs)
        targets, measures = data.heldout_targets, []
        heldout = data.apply(predict, data.heldout)
        if not heldout.isfinite().all():
            raise InputError("targets predicted from the set are not finite: look for NaN in its images and targets")
        if targets is not None:
            measures.append(Measure("mse", functional.mse_loss(heldout, targets[:].cpu().float()).item()))
        if data.labelled:
            voters = self.vote.voters(data, pretrained.seed)
            vectors = data.apply(predict, data.train, voters).to(data.device)
            tested = heldout[data.known(data.heldout)].to(data.device)
            measures.append(Measure("accuracy", self.vote.accuracy(data, voters, vectors, tested)))
        return measures

    @torch.no_grad()
    def _predictor(self, pretrained: Pretrained, pairs: Pairs) -> Callable[[Tensor], Tensor]:
        """Returns the regression from images to targets."""
        student = pretrained.build()
        drawn = torch.randperm(len(pairs), generator=generator(pretrained.seed, "regressed pairs"))
        chosen = drawn[: self.settings.max_pairs].sort().values
        batches = (pairs.batch(part) for part in torch.split(chosen, CHUNK))
        parts = ((pre_logits(student, images), targets) for images, targets in batches)
        weights = regress(parts, len(chosen), self.settings.ridge)
        return lambda images: _append_one(pre_logits(student, images)) @ weights

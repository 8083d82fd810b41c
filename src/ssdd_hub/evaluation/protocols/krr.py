"""Kernel ridge regression from the set itself, by the features of an untrained student."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssdd_hub.bounds import Count, Positive, Settings
from ssdd_hub.distill.krr import linear_kernel
from ssdd_hub.evaluation.protocols.base import LabelledProtocol, Measure, Pretrained, require_finite
from ssdd_hub.evaluation.protocols.knn import KnnSettings
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.models.features import in_parts, pre_logits
from ssdd_hub.models.pretraining import Pair, Pairs
from ssdd_hub.seeds import generator

CHUNK = 512  # pairs whose features are computed at a time


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
    """Returns the weights of `distill.krr.Regression`, `(F + 1, D)`, float64, the last row that of the constant.

    With more pairs than features these follow from the covariance of the features, the only thing that is kept:
    `K (K + λI)⁻¹ = Φ (ΦᵀΦ + λI)⁻¹ Φᵀ` for `K = ΦΦᵀ`.
    Parts are features `(n, F)`, without the constant, and targets `(n, D)`, `count` pairs in all.
    """
    parts = iter(parts)
    first = next(parts)
    width = first[0].shape[1] + 1
    longer = ((_append_one(features), targets.double()) for features, targets in chain([first], parts))
    if count <= width:
        features, targets = (torch.cat(column) for column in zip(*longer, strict=True))
        kernel = linear_kernel(features[:, :-1], features[:, :-1])
        return features.T @ _solve(kernel, targets, ridge)
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


class KernelRegression(LabelledProtocol[KrrSettings]):
    """Kernel ridge regression from a set's pairs by the features of a fresh student in eval mode.

    The outer problem of KRR-ST (Lee et al., ICLR 2024, section 3) as a measure. `mse` is the error of the predicted
    targets of held-out images to the teacher's. `accuracy` is that of a vote of nearest neighbours among the predicted
    targets of labelled images, which needs neither labels in the set nor targets of the images.
    """

    name = "krr"

    def __init__(self, settings: KrrSettings, vote: KnnSettings | None = None) -> None:
        super().__init__(settings)
        self.vote = vote or KnnSettings()

    def key(self, data: RealData) -> dict[str, Any]:
        """Returns all settings, and where there are labels those of the vote."""
        return {**super().key(data), **({"vote": asdict(self.vote)} if data.labelled else {})}

    def applies(self, pretrained: Pretrained, data: RealData) -> bool:
        """Whether there are pairs to regress on, and targets or labels to score by."""
        return pretrained.pairs is not None and (data.heldout_targets is not None or data.labelled)

    def __call__(self, pretrained: Pretrained, data: RealData) -> list[Measure]:
        """Measures the error where targets are known, and the accuracy where labels are."""
        if pretrained.pairs is None:
            raise ValueError("kernel ridge regression needs pairs: check applies() first")
        predict = self._predictor(pretrained, pretrained.pairs)
        problem = "targets predicted from the set are not finite: look for NaN in its images and targets"
        heldout = require_finite(data.apply(predict, data.heldout), problem)
        measures = []
        if data.heldout_targets is not None:
            error = functional.mse_loss(heldout, data.heldout_targets[:].cpu().float())
            measures.append(Measure("mse", error.item()))
        if data.labelled:
            voters = self.vote.voters(data, pretrained.seed)
            vectors = data.apply(predict, data.train, voters).to(data.device)
            tested = heldout[data.known(data.heldout)].to(data.device)
            measures.append(self.vote.measure(data, voters, vectors, tested))
        return measures

    @torch.no_grad()
    def _predictor(self, pretrained: Pretrained, pairs: Pairs) -> Callable[[Tensor], Tensor]:
        student = pretrained.build()
        drawn = torch.randperm(len(pairs), generator=generator(pretrained.seed, "regressed pairs"))
        chosen = drawn[: self.settings.max_pairs].sort().values
        batches = (pairs.batch(part) for part in torch.split(chosen, CHUNK))
        parts = ((_read(student, images), targets) for images, targets in batches)
        weights = regress(parts, len(chosen), self.settings.ridge)
        return lambda images: _append_one(pre_logits(student, images)) @ weights


def _read(student: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([pre_logits(student, part) for part in in_parts(images)])

"""CLP-DD: closed-form linear probe on a frozen backbone, fitted on the set and scored on real images.

Source: Peng et al., "Closed-Form Linear-Probe Dataset Distillation for Pre-trained Vision Models", arXiv 2605.07194.
Its abstract states the ridge regression in the space of images, the frozen features, the cross-entropy with a
temperature, and that the mean squared error (`loss: squared_error`) does much worse. No code was found, and no values
of penalty and temperature: those here, the constant in the kernel, and that the penalty is relative to the trace, are
ours. Its images are augmented: here by `augment`, which real images share; how, it does not state.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from ssdd_hub.bounds import Positive, Repeats, one_of
from ssdd_hub.distill.backbone import build_backbone
from ssdd_hub.distill.groups import require_source
from ssdd_hub.distill.krr import squared_error
from ssdd_hub.distill.method import Problem
from ssdd_hub.distill.methods.classes import CrossEntropy, require_classes
from ssdd_hub.distill.methods.frozen import FrozenSettings, KeptViews, augment_real, augment_set
from ssdd_hub.distill.methods.kernel import KernelMethod, KernelSettings
from ssdd_hub.distill.networks import Augmented
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.models.features import pre_logits
from ssdd_hub.seeds import draw_batch


@dataclass(frozen=True)
class ClpDdSettings(FrozenSettings, KernelSettings):
    """Settings of CLP-DD; without augmentation a step sees the set once, and real images as the run shows them.

    Attributes:
        views: Times that a step sees each image of the set, augmented anew; the regression is fitted on all of them.
        augment: How the set and real images are augmented, each by itself; `none`, or another one.
        penalty: Regularisation relative to `trace(K_ss) / M`.
        loss: `cross_entropy`, for class labels, or `squared_error`.
        temperature: Predictions are divided by it before the softmax.
    """

    views: Repeats = 1
    augment: Augmented = "none"
    penalty: Positive = 1e-3
    loss: Annotated[str, one_of(("cross_entropy", "squared_error"))] = "cross_entropy"
    temperature: Positive = 0.1


class ClpDd(KernelMethod):
    """Fits a ridge regression from frozen features to targets on the set; the loss is that of its predictions."""

    name = "clp_dd"
    citation = "Peng et al., 2026, arXiv 2605.07194"
    Settings = ClpDdSettings
    stage = "real features"
    long_steps = True
    settings: ClpDdSettings

    def __init__(self, settings: ClpDdSettings, problem: Problem) -> None:
        cross_entropy = settings.loss == "cross_entropy"
        super().__init__(settings, problem, CrossEntropy(1 / settings.temperature) if cross_entropy else squared_error)
        if cross_entropy:
            require_classes(problem, "the cross-entropy of clp_dd", "--method.args '{loss: squared_error}'")
        self._backbone = _Frozen(build_backbone(settings, problem))
        self._kept = self._keep() if settings.real_views else None

    def network(self, step: int) -> nn.Module:
        """Returns the backbone."""
        return self._backbone

    def judge(self) -> nn.Module:
        """Returns the backbone."""
        return self._backbone.backbone

    def prepare(self, pairs: Pairs) -> Iterator[None]:
        """Computes the features of real images that are kept."""
        return self._kept.compute() if self._kept else iter(())

    def preparation(self) -> int:
        """Returns in how many parts kept features are computed."""
        return len(self._kept) if self._kept else 0

    def rehearse(self) -> None:
        """Keeps features of few real images from here on, which stand for all."""
        if self._kept:
            self._kept.rehearsed = True

    def real(self, step: int) -> Pairs:
        """Returns the step's real images, augmented, or their features `(b, F, 1, 1)` where these are kept."""
        problem, augment = self.problem, self.settings.augment
        size = problem.batch_size
        mine = slice(problem.rank * size // problem.world, (problem.rank + 1) * size // problem.world)
        if self._kept:
            source, engine = require_source(problem), problem.engine
            rows = draw_batch(len(source.bank), size, problem.seed, "real batch", step)
            seen = self._kept.draw(rows, step)[mine, :, None, None]
            return Pairs(seen, source.targets[rows[mine]]).to(engine.device, engine.dtype)
        if augment == "none":
            return super().real(step)
        # Each process shows all images, so that the views of its own do not depend on how many there are.
        images, targets = problem.whole_batch(step)
        return Pairs(augment_real(images, augment, problem.seed, step)[mine], targets[mine])

    def loss(self, pairs: Pairs, step: int) -> Tensor:
        """Returns the loss of the predictions of the step's real images."""
        return super().loss(self._seen(pairs, step), step)

    def gradients(self, pairs: Pairs, step: int) -> tuple[Tensor, ...]:
        """Returns the loss and its gradients, computed in parts that fit the memory."""
        leaves = pairs.leaves()
        seen = self._seen(leaves, step)
        loss, *gradients = super().gradients(seen.detached(), step)
        return loss, *torch.autograd.grad([*seen], leaves, gradients)

    def _seen(self, pairs: Pairs, step: int) -> Pairs:
        if self.settings.augment == "none":
            return pairs
        views = range(self.settings.views)
        shown = [augment_set(pairs.images, self.settings.augment, self.problem.seed, step, view) for view in views]
        return Pairs(torch.cat(shown), pairs.targets.repeat(len(views), 1))

    def _keep(self) -> KeptViews:
        source, engine = require_source(self.problem), self.problem.engine

        def images(rows: Tensor) -> Tensor:
            return source.images(rows).to(engine.device, engine.dtype)

        def features(images: Tensor) -> Tensor:
            found: Tensor = engine.features(self._backbone, images)
            return found

        return KeptViews(images, features, len(source.bank), self.settings, self.problem.seed)


class _Frozen(nn.Module):
    """A frozen backbone that lets features pass, as images of one pixel."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward_features(self, images: Tensor) -> Tensor:
        """Maps images `(n, C, H, W)` to features `(n, F)`; returns features `(n, F, 1, 1)` as they are."""
        return images.flatten(1) if images.shape[-1] == 1 else pre_logits(self.backbone, images)

    def forward_head(self, features: Tensor, pre_logits: bool = True) -> Tensor:
        """Returns the features: there is no head."""
        return features

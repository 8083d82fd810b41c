"""CLP-DD: closed-form linear probe on a frozen backbone, fitted on the set and scored on real images.

Source: Peng et al., "Closed-Form Linear-Probe Dataset Distillation for Pre-trained Vision Models", arXiv 2605.07194.
Its abstract states the ridge regression in the space of images, the frozen features, the cross-entropy with a
temperature, and that the mean squared error (`loss: squared_error`) does much worse. No code was found, and no values
of penalty and temperature: those here, the constant in the kernel, and that the penalty is relative to the trace, are
ours. Its images are augmented; here `distiller.augment` does it for the real ones alone.
"""

from dataclasses import dataclass
from typing import Annotated

from torch import nn

from ssdd_hub.bounds import Positive, one_of
from ssdd_hub.distill.backbone import BackboneSettings, build_backbone
from ssdd_hub.distill.krr import squared_error
from ssdd_hub.distill.method import Problem
from ssdd_hub.distill.methods.classes import CrossEntropy, require_classes
from ssdd_hub.distill.methods.kernel import KernelMethod, KernelSettings


@dataclass(frozen=True)
class ClpDdSettings(BackboneSettings, KernelSettings):
    """Settings of CLP-DD.

    Attributes:
        penalty: Regularisation relative to `trace(K_ss) / M`.
        loss: `cross_entropy`, for class labels, or `squared_error`.
        temperature: Predictions are divided by it before the softmax.
    """

    penalty: Positive = 1e-3
    loss: Annotated[str, one_of(("cross_entropy", "squared_error"))] = "cross_entropy"
    temperature: Positive = 0.1


class ClpDd(KernelMethod):
    """Fits a ridge regression from frozen features to targets on the set; the loss is that of its predictions."""

    name = "clp_dd"
    citation = "Peng et al., 2026, arXiv 2605.07194"
    Settings = ClpDdSettings
    long_steps = True
    settings: ClpDdSettings

    def __init__(self, settings: ClpDdSettings, problem: Problem) -> None:
        cross_entropy = settings.loss == "cross_entropy"
        super().__init__(settings, problem, CrossEntropy(1 / settings.temperature) if cross_entropy else squared_error)
        if cross_entropy:
            require_classes(problem, "the cross-entropy of clp_dd", "--method.args '{loss: squared_error}'")
        self._backbone = build_backbone(settings, problem)

    def network(self, step: int) -> nn.Module:
        """Returns the backbone."""
        return self._backbone

    def judge(self) -> nn.Module:
        """Returns the backbone."""
        return self._backbone
